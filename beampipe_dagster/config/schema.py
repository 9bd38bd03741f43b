"""JSON Schemas (draft 2020-12, https://json-schema.org/draft/2020-12) of project files and profiles.

For editors and for other people's programs. A document that a schema accepts may still be refused by
validation, which knows more; a document that validation accepts is accepted by the schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import GenerateJsonSchema

from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.config.project import ProjectConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
"""What ``$schema`` says."""

# Where a model does not describe a field itself.
_MEANINGS: Final = {
    "Adapters": {
        "required": "The archives that must answer before anything is looked for",
        "casda_tap_url": "TAP service of the archive casda; unless given, the platform's own",
        "vizier_tap_url": "TAP service of the archive vizier; unless given, the platform's own",
        "tap": "How patient to be with them",
        "definitions": "By name: TAP services that the survey brings itself",
    },
    "AdapterDefinition": {
        "tap_url": "Base URL of the service",
        "auth_env": "Where the credentials are; without it none are sent",
        "maxrec": "Most rows of one answer; an answer that is cut off is never used",
        "timeout_seconds": "Longest wait for one answer; unless given, that of tap",
    },
    "AuthEnv": {
        "user": "Name of the variable with the user's name",
        "password": "Name of the variable with the password",
        "token": "Name of the variable with a bearer token",
    },
    "GraphSource": {
        "url": "Where the graph is fetched from; either this or path",
        "path": "The graph's file, beside this file or absolute; either this or url",
        "sha256": "SHA-256 of the file's bytes, 64 hex digits; required",
    },
    "GraphPatch": {
        "match": "Which nodes",
        "set": "By field: its value; $count(PATH) and $sum(PATH) are computed over the manifest",
    },
    "GraphPatchMatch": {
        "kind": "What is looked for; required",
        "equals": "node_name: the name, exactly",
        "id": "node_id: the node's id",
        "name": "node_name_index: the name",
        "index": "node_name_index: which of the nodes of that name, from 0",
        "category": "category: the node's category, such as Scatter",
        "field": "field_value: the name of a field",
        "value": "field_value: the value that the field has in the graph",
        "count": "Whether one node may match, or many; unless given, many for node_name only",
    },
}


class _Generator(GenerateJsonSchema):
    """Without the titles that are only a field's name again."""

    schema_dialect = DIALECT

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002  # pydantic's signature
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:  # noqa: ANN401  # pydantic's signature
        out = super().default_schema(schema)
        default = out.get("default")
        # A section that is left out is the section with all its defaults; its own schema says which. What
        # stands for an unknown word is nothing that a file may say.
        if (isinstance(default, dict) and "$ref" in out) or default not in out.get("enum", [default]):
            del out["default"]
        return out


def project_schema() -> dict[str, Any]:
    """JSON Schema of a project file's value.

    Returns
    -------
    dict
        A schema with ``$defs`` for the sections; the caller may change it.
    """
    return _schema(ProjectConfig, "Beampipe project")


def profile_schema() -> dict[str, Any]:
    """JSON Schema of a deployment profile.

    Returns
    -------
    dict
        A schema with ``$defs`` for the parts; the caller may change it.
    """
    return _schema(DeploymentProfile, "Beampipe deployment profile")


def _schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="validation")
    for name, part in ((model.__name__, schema), *schema.get("$defs", {}).items()):
        for field, about in part["properties"].items():
            if meaning := _MEANINGS.get(name, {}).get(field):
                about.setdefault("description", meaning)
        if "const" in part["properties"].get("kind", {}):
            part["required"] = list(dict.fromkeys(("kind", *part.get("required", ()))))
        if isinstance(description := part.get("description"), str):
            part["description"] = description.split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return {"$schema": DIALECT, **schema, "title": title}
