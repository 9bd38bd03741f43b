"""Dagster's side: resources, assets, checks, jobs and sensors, assembled in :mod:`~beampipe_dagster.defs.build`.

Belongs here: everything that imports Dagster, in bodies that resolve a resource, call one service and return
metadata. Does not belong here: decisions, SQL, protocols. No other package imports this one.
"""
