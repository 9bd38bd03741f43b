"""Watching what was submitted: observations, uncertain submissions, the way to a terminal status.

Belongs here: one bounded look at everything in flight. Does not belong here: starting anything
(:mod:`beampipe_dagster.execution`).
"""
