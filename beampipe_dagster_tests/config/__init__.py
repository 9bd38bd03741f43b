"""Tests of `beampipe_dagster.config`."""
