# ruff: noqa: INP001  # a script beside the files that it makes, not part of a package
"""Build ``example_survey.graph``: about the smallest logical graph that a survey can run.

::

    beampipe-ingest -> manifest -> measure-images -> catalogue

``beampipe-ingest`` with its field ``manifest_path`` is where an execution's manifest comes in; every graph
needs a node of that name. ``measure-images`` stands in for the survey's own work. Both are Python functions
whose text travels inside the graph, so that nothing has to be installed beside DALiuGE.

Run ``python build_graph.py`` after a change: it writes the graph, always in the same order and with the same
identifiers, and puts its SHA-256 into ``example_survey.yaml``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).resolve().parent
GRAPH_FILE: Final = HERE / "example_survey.graph"
PROJECT_FILE: Final = HERE / "example_survey.yaml"
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://beampipe.dev/graphs/example_survey")
_PRELUDE: Final = "import json\n\n\n"

JsonObject = dict[str, Any]


def beampipe_ingest(manifest_path: str) -> bytes:
    """Hand the manifest on."""
    if not (manifest_path or "").startswith("{"):
        raise ValueError("beampipe-ingest: nobody gave this graph a manifest")
    return manifest_path.encode("utf-8")


def measure_images(manifest: bytes, expected_images: int = 0, threshold: float = 5.0) -> bytes:
    """Write a line for each image; stop when there are not as many as the execution was made for."""
    sources = json.loads(manifest)["sources"]
    images = [image for source in sources for block in source["sbids"] for image in block["datasets"]]
    if len(images) != int(expected_images):
        raise ValueError(f"measure-images: {len(images)} images, but {expected_images} were expected")
    lines = [
        {"image": image["dataset_id"], "sbid": image["sbid"], "threshold": float(threshold)}
        for image in sorted(images, key=lambda image: image["dataset_id"])
    ]
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode("utf-8")


def field(
    name: str,
    value: str | float = "",  # a bool is one of Python's numbers
    kind: str = "String",
    *,
    role: str = "ComponentParameter",
) -> JsonObject:
    """A parameter of a component, as EAGLE writes it."""
    return {
        "name": name,
        "value": value,
        "defaultValue": str(value) if kind == "Integer" else value,
        "description": "",
        "readonly": False,
        "type": kind,
        "precious": False,
        "options": [],
        "positional": False,
        "encoding": "pickle",
        "parameterType": role,
        "usage": "NoPort",
    }


def port(name: str, usage: str, encoding: str = "pickle") -> JsonObject:
    """A port: where a drop of data is read or written."""
    return {**field(name, "", "Object", role="ApplicationArgument"), "usage": usage, "encoding": encoding}


def node(name: str, category: str, kind: str, fields: list[JsonObject], description: str) -> JsonObject:
    """A node; its identifiers, and those of its fields, follow from the names."""
    made: JsonObject = {
        "category": category,
        "categoryType": kind,
        "isGroup": False,
        "color": "#0059a5",
        "drawOrderHint": 0,
        "id": _id(name),
        "name": name,
        "description": description,
        "comment": "",
        "x": 0,
        "y": 0,
        "repositoryUrl": "",
        "commitHash": "",
        "paletteDownloadUrl": "",
        "dataHash": "",
        "fields": [{**entry, "id": _id(f"{name}/{entry['name']}")} for entry in fields],
    }
    for side in ("input", "output"):
        made |= {f"{side}AppFields": [], f"{side}ApplicationName": "", f"{side}ApplicationType": "None"}
        made |= {f"{side}ApplicationId": None, f"{side}ApplicationDescription": ""}
    return made


def function(name: str, code: Callable[..., Any], fields: list[JsonObject]) -> JsonObject:
    """An application that is a Python function of this file."""
    common = [
        field("func_name", code.__name__),
        field("func_code", _PRELUDE + inspect.getsource(code)),
        field("dropclass", "dlg.apps.pyfunc.PyFuncApp"),
        field("execution_time", 2, "Float", role="ConstraintParameter"),
        field("num_cpus", 1, "Integer", role="ConstraintParameter"),
        field("group_start", value=False, kind="Boolean"),
        field("input_error_threshold", 0, "Integer"),
        field("n_tries", 1, "Integer"),
    ]
    return node(name, "PyFuncApp", "Application", [*common, *fields], inspect.getdoc(code) or "")


def data(name: str, description: str, filepath: str | None = None) -> JsonObject:
    """A drop of data: in memory, or a file."""
    kind = "memory.InMemoryDROP" if filepath is None else "file.FileDROP"
    fields = [
        field("dropclass", f"dlg.data.drops.{kind}"),
        field("data_volume", 1, "Float", role="ConstraintParameter"),
        field("persist", filepath is not None, "Boolean"),
        field("group_end", value=False, kind="Boolean"),
        field("streaming", value=False, kind="Boolean"),
        port("io", "InputOutput"),
    ]
    if filepath is not None:
        fields.append(field("filepath", filepath, role="ApplicationArgument"))
    return node(name, "Memory" if filepath is None else "File", "Data", fields, description)


def link(source: str, target: str) -> JsonObject:
    """A link, each end given as ``node/port``."""
    return {
        "from": _id(source.partition("/")[0]),
        "to": _id(target.partition("/")[0]),
        "fromPort": _id(source),
        "toPort": _id(target),
        "comment": "",
        "loop_aware": "0",
        "closesLoop": False,
    }


def _id(name: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, name))


def build() -> JsonObject:
    """The logical graph: four nodes, one drop each."""
    manifest_path = {**port("manifest_path", "InputPort", "path"), "type": "String"}
    nodes = [
        function("beampipe-ingest", beampipe_ingest, [manifest_path, port("manifest_bytes", "OutputPort")]),
        data("manifest", "The manifest's bytes."),
        function(
            "measure-images",
            measure_images,
            [
                field("expected_images", 0, "Integer", role="ApplicationArgument"),
                field("threshold", 5.0, "Float", role="ApplicationArgument"),
                port("manifest", "InputPort"),
                port("lines", "OutputPort", "raw"),
            ],
        ),
        # DALiuGE puts session, node and copy in the place of {auto}; without it, sessions would share a file.
        data("catalogue", "What was measured.", "$DLG_ROOT/example_survey/catalogue.{auto}.jsonl"),
    ]
    return {
        "modelData": {
            "filePath": GRAPH_FILE.name,
            "fileType": "Graph",
            "shortDescription": "Measure the images of a field",
            "schemaVersion": "OJS",
            "readonly": False,
            "lastModifiedDatetime": 0,
            "numLGNodes": len(nodes),
        },
        "activeGraphConfigId": None,
        "graphConfigurations": {},
        "nodeDataArray": nodes,
        "linkDataArray": [
            link("beampipe-ingest/manifest_bytes", "manifest/io"),
            link("manifest/io", "measure-images/manifest"),
            link("measure-images/lines", "catalogue/io"),
        ],
    }


def render() -> bytes:
    """The bytes of ``example_survey.graph``."""
    return (json.dumps(build(), indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def main() -> None:
    """Write the graph and pin its SHA-256 in the survey's file."""
    raw = render()
    GRAPH_FILE.write_bytes(raw)
    pin = hashlib.sha256(raw).hexdigest()
    text = PROJECT_FILE.read_text(encoding="utf-8")
    PROJECT_FILE.write_text(
        re.sub(r"(?m)^(  sha256: )\S*", lambda match: match[1] + pin, text), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
