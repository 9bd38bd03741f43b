# ruff: noqa: INP001  # a script beside the files that it makes, not part of a package
"""Build ``wallaby_demo.graph``: the logical graph that the demo survey runs.

The graph images each beam of a source on its own, in parallel, and then joins the beams into a mosaic::

    beampipe-ingest -> manifest -> plan-beams -> beams
        -> Scatter/GenericScatterApp/Beam  { beam -> image-beam -> beam-product, beam-summary }
        -> gather-beams -> beam-list -> mosaic -> mosaic-product

Only components of a stock DALiuGE are used: the functions below travel inside the graph as text, so that
nothing has to be installed beside the node manager. They stand in for real imaging: a beam takes two seconds
and "the image" is one line of JSON.

Run ``python build_graph.py`` after a change. The graph is written in the same order and with the same
identifiers each time, and its SHA-256 is put into ``wallaby_demo.yaml``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE: Final = Path(__file__).resolve().parent
GRAPH_FILE: Final = HERE / "wallaby_demo.graph"
PROJECT_FILE: Final = HERE / "wallaby_demo.yaml"
SCATTER_NAME: Final = "Scatter/GenericScatterApp/Beam"
# Relative paths are looked up in the node manager's working directory, which is that of the session that was
# made last. So products have absolute paths; DALiuGE puts session, node and copy in the place of {auto}.
PRODUCTS: Final = "$DLG_ROOT/wallaby_demo"

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://beampipe.dev/graphs/wallaby_demo")
_PRELUDE: Final = "import json\nimport time\nfrom pathlib import Path\n\n\n"


# --------------------------------------------------------------------------------------------------------
# The functions that travel inside the graph. Each stands alone: it sees the prelude's imports and nothing
# else of this file. The names of its arguments are the names of its ports.
# --------------------------------------------------------------------------------------------------------


def beampipe_ingest(manifest_path: str) -> bytes:
    """Hand the manifest on; the field holds its text, or the path of a file with it."""
    text = (manifest_path or "").strip()
    if not text:
        raise ValueError("beampipe-ingest: manifest_path is empty; nobody gave this graph a manifest")
    if text.startswith("{"):
        return text.encode("utf-8")
    return Path(text).read_bytes()


def plan_beams(manifest: bytes) -> list[dict[str, object]]:
    """List the datasets to image: one entry a beam, over all sources and scheduling blocks."""
    document = json.loads(manifest)
    beams = [
        dataset
        for source in document["sources"]
        for block in source["sbids"]
        for dataset in block["datasets"]
    ]
    if not beams:
        raise ValueError("plan-beams: the manifest names no dataset")
    return beams


def image_beam(beam: list[dict[str, object]], seconds: float = 2.0) -> bytes:
    """Image the beam of this copy of the scatter; a rejected observation is never imaged."""
    lines = []
    for dataset in beam:
        name = dataset.get("dataset_id") or dataset.get("filename")
        if str(dataset.get("quality_level", "")).upper() == "REJECTED":
            raise ValueError(f"beam {name}: quality_level REJECTED, refusing to image")
        time.sleep(float(seconds))
        product = {
            "beam": name,
            "sbid": dataset.get("sbid"),
            "source_identifier": dataset.get("source_identifier"),
            "quality_level": dataset.get("quality_level"),
            "image": f"image.{name}.fits",
        }
        lines.append(json.dumps(product, sort_keys=True) + "\n")
    if not lines:
        raise ValueError("image-beam: the scatter has more copies than the manifest has datasets")
    return "".join(lines).encode("utf-8")


def mosaic(beams: bytes) -> bytes:
    """Join the beams' products, which arrive as one JSON object a line, in any order."""
    products = [json.loads(line) for line in bytes(beams).decode("utf-8").splitlines() if line]
    products.sort(key=lambda product: str(product["beam"]))
    summary = {
        "beam_count": len(products),
        "beams": [product["beam"] for product in products],
        "sbids": sorted({str(product["sbid"]) for product in products}),
        "sources": sorted({str(product["source_identifier"]) for product in products}),
    }
    return (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode("utf-8")


# --------------------------------------------------------------------------------------------------------
# A small builder for EAGLE's graph format.
# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a component: a parameter (``NoPort``) or a port.

    Parameters
    ----------
    name
        Name of the parameter or port; a function's argument of that name gets its value.
    value
        Value when nothing else is given.
    kind
        EAGLE's type: ``String``, ``Integer``, ``Float``, ``Boolean``, ``Object``.
    role
        EAGLE's parameterType: who reads the field.
    usage
        ``NoPort``, ``InputPort``, ``OutputPort`` or ``InputOutput``.
    encoding
        How DALiuGE reads or writes what passes through a port.
    """

    name: str
    value: Any = ""
    kind: str = "String"
    role: str = "ComponentParameter"
    usage: str = "NoPort"
    encoding: str = "pickle"
    description: str = ""

    def as_dict(self, owner: str) -> dict[str, Any]:
        """The field as EAGLE writes it, with an identifier that follows from its owner and name."""
        return {
            "name": self.name,
            "value": self.value,
            "defaultValue": str(self.value) if self.kind == "Integer" else self.value,
            "description": self.description,
            "readonly": False,
            "type": self.kind,
            "precious": False,
            "options": [],
            "positional": False,
            "encoding": self.encoding,
            "id": str(uuid.uuid5(_NAMESPACE, f"{owner}/{self.name}/{self.usage}")),
            "parameterType": self.role,
            "usage": self.usage,
        }


def port(name: str, usage: str, encoding: str) -> Field:
    """A port of an application."""
    return Field(name, "", "Object", "ApplicationArgument", usage, encoding)


def app_fields(dropclass: str, *, seconds: int) -> list[Field]:
    """What every application has; ``seconds`` is only an estimate for the partitioning."""
    return [
        Field("dropclass", dropclass),
        Field("execution_time", seconds, "Float", "ConstraintParameter"),
        Field("num_cpus", 1, "Integer", "ConstraintParameter"),
        Field("group_start", value=False, kind="Boolean"),
        Field("input_error_threshold", 0, "Integer"),
        Field("n_tries", 1, "Integer"),
    ]


@dataclass(slots=True)
class Builder:
    """Collects nodes and links in the order in which they are added."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: list[dict[str, Any]] = field(default_factory=list)

    def node(
        self,
        name: str,
        category: str,
        category_type: str,
        fields: Sequence[Field],
        *,
        description: str,
        parent: str | None = None,
    ) -> dict[str, Any]:
        """Add a node; names are unique here, so that a patch can name exactly one."""
        node: dict[str, Any] = {
            "category": category,
            "categoryType": category_type,
            "isGroup": category_type == "Construct",
            "color": {"Data": "#2c2c2c", "Construct": "#e3bd64"}.get(category_type, "#0059a5"),
            "drawOrderHint": 0,
            "id": str(uuid.uuid5(_NAMESPACE, name)),
            "name": name,
            "description": description,
            "comment": "",
            "x": 240 * len(self.nodes),
            "y": 120 if parent else 0,
            "repositoryUrl": "",
            "commitHash": "",
            "paletteDownloadUrl": "",
            "dataHash": "",
            "fields": [entry.as_dict(name) for entry in fields],
        }
        for side in ("input", "output"):
            node[f"{side}AppFields"] = []
            node[f"{side}ApplicationName"] = ""
            node[f"{side}ApplicationType"] = "None"
            node[f"{side}ApplicationId"] = None
            node[f"{side}ApplicationDescription"] = ""
            node[f"{side}ApplicationComment"] = ""
        if parent is not None:
            node["parentId"] = self.nodes[parent]["id"]
        self.nodes[name] = node
        return node

    def data(
        self,
        name: str,
        description: str,
        *,
        filepath: str | None = None,
        parent: str | None = None,
    ) -> None:
        """Add a data drop: in memory, or a file when ``filepath`` is given."""
        category = "Memory" if filepath is None else "File"
        fields = [
            Field(
                "dropclass",
                "dlg.data.drops.memory.InMemoryDROP" if filepath is None else "dlg.data.drops.file.FileDROP",
            ),
            Field("data_volume", 1, "Float", "ConstraintParameter"),
            Field("persist", filepath is not None, "Boolean"),
            Field("group_end", value=False, kind="Boolean"),
            Field("streaming", value=False, kind="Boolean"),
        ]
        if filepath is not None:
            fields.append(Field("filepath", filepath, role="ApplicationArgument"))
        fields.append(port("io", "InputOutput", "pickle"))
        self.node(name, category, "Data", fields, description=description, parent=parent)

    def function(
        self,
        name: str,
        function: Callable[..., Any],
        ports: Sequence[Field],
        *,
        description: str,
        parent: str | None = None,
    ) -> None:
        """Add a Python function whose text travels inside the graph."""
        fields = [
            Field("func_name", function.__name__),
            Field("func_code", _PRELUDE + inspect.getsource(function)),
            *app_fields("dlg.apps.pyfunc.PyFuncApp", seconds=2),
            *ports,
        ]
        self.node(name, "PyFuncApp", "Application", fields, description=description, parent=parent)

    def link(self, source: str, source_port: str, target: str, target_port: str) -> None:
        """Join an output port to an input port."""
        self.links.append(
            {
                "comment": "",
                "from": self.nodes[source]["id"],
                "fromPort": self._port_id(source, source_port, "OutputPort"),
                "to": self.nodes[target]["id"],
                "toPort": self._port_id(target, target_port, "InputPort"),
                "loop_aware": "0",
                "closesLoop": False,
            }
        )

    def _port_id(self, node: str, name: str, usage: str) -> str:
        fields = [*self.nodes[node]["fields"], *self.nodes[node]["inputAppFields"]]
        return next(
            str(entry["id"])
            for entry in fields
            if entry["name"] == name and entry["usage"] in (usage, "InputOutput")
        )

    def as_dict(self, file_name: str) -> dict[str, Any]:
        """The graph as EAGLE writes it."""
        return {
            "modelData": {
                "filePath": file_name,
                "fileType": "Graph",
                "shortDescription": "Image each beam of a source, then make the mosaic",
                "detailedDescription": "",
                "repoService": "",
                "repoBranch": "",
                "repo": "",
                "generatorVersion": "",
                "generatorCommitHash": "",
                "generatorName": "",
                "schemaVersion": "OJS",
                "readonly": False,
                "repositoryUrl": "",
                "commitHash": "",
                "downloadUrl": "",
                "signature": "",
                "lastModifiedName": "",
                "lastModifiedEmail": "",
                "lastModifiedDatetime": 0,
                "numLGNodes": len(self.nodes),
            },
            "activeGraphConfigId": None,
            "graphConfigurations": {},
            "nodeDataArray": list(self.nodes.values()),
            "linkDataArray": self.links,
        }


# --------------------------------------------------------------------------------------------------------
# The demo graph itself.
# --------------------------------------------------------------------------------------------------------


def build() -> dict[str, Any]:
    """The demo survey's logical graph.

    Returns
    -------
    dict
        12 nodes. With ``n`` datasets DALiuGE unrolls them to ``4 n + 9`` drops.
    """
    graph = Builder()
    _manifest_to_beams(graph)
    _image_each_beam(graph)
    _join_beams(graph)
    return graph.as_dict(GRAPH_FILE.name)


def _manifest_to_beams(graph: Builder) -> None:
    manifest_path = Field(
        "manifest_path",
        role="ApplicationArgument",
        usage="InputPort",
        encoding="path",
        description="The manifest's JSON text (set for each execution), or the path of a file with it.",
    )
    graph.function(
        "beampipe-ingest",
        beampipe_ingest,
        [manifest_path, port("manifest_bytes", "OutputPort", "pickle")],
        description="Where the manifest of an execution enters the graph.",
    )
    graph.data("manifest", "The manifest's bytes.")
    graph.function(
        "plan-beams",
        plan_beams,
        [port("manifest", "InputPort", "pickle"), port("plan", "OutputPort", "pickle")],
        description="One entry a dataset, over all sources and scheduling blocks.",
    )
    graph.data("beams", "The list of datasets to image.")
    graph.link("beampipe-ingest", "manifest_bytes", "manifest", "io")
    graph.link("manifest", "io", "plan-beams", "manifest")
    graph.link("plan-beams", "plan", "beams", "io")


def _image_each_beam(graph: Builder) -> None:
    copies = Field(
        "num_of_copies",
        1,
        "Integer",
        "ConstructParameter",
        description="How many beams are imaged in parallel: one copy a dataset, set for each execution.",
    )
    scatter = graph.node(
        SCATTER_NAME, "Scatter", "Construct", [copies], description="What is done for each beam."
    )
    scatter["inputApplicationName"] = "GenericScatterApp"
    scatter["inputApplicationType"] = "DALiuGEApp"
    scatter["inputApplicationId"] = str(uuid.uuid5(_NAMESPACE, f"{SCATTER_NAME}/input"))
    scatter["inputAppFields"] = [
        entry.as_dict(f"{SCATTER_NAME}/input")
        for entry in (
            *app_fields("dlg.apps.simple.GenericScatterApp", seconds=1),
            port("array", "InputPort", "pickle"),
            port("split_array", "OutputPort", "pickle"),
        )
    ]
    graph.data("beam", "The dataset of this copy.", parent=SCATTER_NAME)
    graph.function(
        "image-beam",
        image_beam,
        [
            Field("seconds", 2.0, "Float", "ApplicationArgument", description="How long a beam takes."),
            port("beam", "InputPort", "pickle"),
            port("product", "OutputPort", "raw"),
            port("summary", "OutputPort", "raw"),
        ],
        description="Stands in for the imager; refuses an observation that was rejected.",
        parent=SCATTER_NAME,
    )
    graph.data(
        "beam-product",
        "What the imager made of one beam.",
        filepath=f"{PRODUCTS}/beam.{{auto}}.json",
        parent=SCATTER_NAME,
    )
    # Every ten seconds the node manager forgets files that are not there yet, and an application that opens
    # one of them later fails. So nothing in this graph reads a file: what goes on stays in memory.
    graph.data("beam-summary", "The same, for the mosaic.", parent=SCATTER_NAME)
    graph.link("beams", "io", SCATTER_NAME, "array")
    graph.link(SCATTER_NAME, "split_array", "beam", "io")
    graph.link("beam", "io", "image-beam", "beam")
    graph.link("image-beam", "product", "beam-product", "io")
    graph.link("image-beam", "summary", "beam-summary", "io")


def _join_beams(graph: Builder) -> None:
    # A Python function gets only one of several drops that arrive at the same port; the gather application
    # reads them all and writes them one after the other.
    graph.node(
        "gather-beams",
        "DALiuGEApp",
        "Application",
        [
            *app_fields("dlg.apps.simple.GenericGatherApp", seconds=1),
            port("input", "InputPort", "raw"),
            port("output", "OutputPort", "raw"),
        ],
        description="Waits for every beam and joins the products.",
    )
    graph.data("beam-list", "The products of all beams, one JSON object a line.")
    graph.function(
        "mosaic",
        mosaic,
        [port("beams", "InputPort", "utf-8"), port("summary", "OutputPort", "raw")],
        description="Stands in for the mosaicking; its summary is what the execution made.",
    )
    graph.data("mosaic-product", "The summary of the mosaic.", filepath=f"{PRODUCTS}/mosaic.{{auto}}.json")
    graph.link("beam-summary", "io", "gather-beams", "input")
    graph.link("gather-beams", "output", "beam-list", "io")
    graph.link("beam-list", "io", "mosaic", "beams")
    graph.link("mosaic", "summary", "mosaic-product", "io")


def render() -> bytes:
    """The bytes of ``wallaby_demo.graph``."""
    return (json.dumps(build(), indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def main() -> None:
    """Write the graph and pin its SHA-256 in the survey's file."""
    raw = render()
    GRAPH_FILE.write_bytes(raw)
    sha256 = hashlib.sha256(raw).hexdigest()
    if PROJECT_FILE.exists():
        text = PROJECT_FILE.read_text(encoding="utf-8")
        pinned = re.sub(r"(?m)^(  sha256: )\S+$", rf"\g<1>{sha256}", text, count=1)
        PROJECT_FILE.write_text(pinned, encoding="utf-8")
    sys.stdout.write(f"{GRAPH_FILE.name}: {len(raw)} bytes, sha256 {sha256}\n")


if __name__ == "__main__":
    main()
