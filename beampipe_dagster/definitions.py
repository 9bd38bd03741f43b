"""The code location. Everything is assembled in :mod:`beampipe_dagster.defs.build`."""

from beampipe_dagster.defs.build import build_definitions

defs = build_definitions()
