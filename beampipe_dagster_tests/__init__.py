"""Tests; the packages mirror those of `beampipe_dagster`."""
