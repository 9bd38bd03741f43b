"""Who is to be processed: the registry, and whether a source may be executed now.

Belongs here: registration, marking for discovery, readiness. Does not belong here: asking archives
(:mod:`beampipe_dagster.discovery`), deciding about executions (:mod:`beampipe_dagster.execution`).
"""
