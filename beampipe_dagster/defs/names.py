"""The names that Dagster knows things by: keys, groups, partitions and tags of a survey."""

from __future__ import annotations

from typing import Final

import dagster as dg

OWNERS: Final = ["team:survey-operations"]

SOURCE_REGISTRY: Final = "source_registry"
ARCHIVE_METADATA: Final = "archive_metadata"
STAGED_DATA: Final = "staged_data"
WORKFLOW_MANIFEST: Final = "workflow_manifest"
PREPARED_GRAPH: Final = "prepared_graph"
PHYSICAL_GRAPH: Final = "physical_graph"
BACKEND_RUN: Final = "backend_run"
EXECUTION_OUTCOME: Final = "execution_outcome"

TAG_PROJECT: Final = "beampipe/project"
TAG_SOURCE: Final = "beampipe/source"
TAG_EXECUTION: Final = "beampipe/execution"
TAG_CLAIM: Final = "beampipe/claim"
TAG_KIND: Final = "beampipe/kind"


def asset_key(project_id: str, asset: str) -> dg.AssetKey:
    """``[<survey>, <asset>]``: a survey is a key prefix and a group of its own."""
    return dg.AssetKey([project_id, asset])


def partitions_name(project_id: str) -> str:
    """The name of a survey's dynamic partitions, one key a discovery signature."""
    return f"{project_id}_signatures"


def signatures(project_id: str) -> dg.DynamicPartitionsDefinition:
    """A survey's partitions."""
    return dg.DynamicPartitionsDefinition(name=partitions_name(project_id))


def execution_job(project_id: str) -> str:
    """The name of the job that takes an execution to its submission."""
    return f"{project_id}_execute"
