"""Small logical graphs in the form that the EAGLE editor writes; identifiers are reproducible."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

Fields = list[dict[str, Any]]
Graph = dict[str, Any]

_NAMESPACE = uuid.UUID("5d0c2f5e-0d57-4f0e-9a53-6f2b7f1c2a11")
_FILE = "dlg.data.drops.file.FileDROP"
_MEMORY = "dlg.data.drops.memory.InMemoryDROP"
_BASH = "dlg.apps.bash_shell_app.BashShellApp"


def setting(name: str, value: Any, *, kind: str = "Component", typed: str = "String") -> Graph:
    """A field that holds a value."""
    return _field(name, value, parameter=f"{kind}Parameter", usage="NoPort", typed=typed)


def argument(name: str, value: Any, *, typed: str = "String") -> Graph:
    """A field that the application gets as an argument."""
    return _field(name, value, parameter="ApplicationArgument", usage="NoPort", typed=typed)


def port(name: str, usage: str, *, encoding: str = "pickle") -> Graph:
    """A field that a link may start from or end at."""
    return _field(name, "", parameter="ApplicationArgument", usage=usage, typed="Object", encoding=encoding)


def _field(
    name: str, value: Any, *, parameter: str, usage: str, typed: str, encoding: str = "pickle"
) -> Graph:
    return {
        "name": name,
        "value": value,
        "defaultValue": value,
        "description": "",
        "readonly": False,
        "type": typed,
        "precious": False,
        "options": [],
        "positional": False,
        "encoding": encoding,
        "parameterType": parameter,
        "usage": usage,
    }


class GraphBuilder:
    """Put nodes and links together; ``build()`` gives the logical graph.

    Nodes are named by a key of the builder; ``link("a.out", "b.in")`` connects named ports.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: dict[str, Graph] = {}
        self._links: list[Graph] = []

    def app(
        self,
        key: str,
        dropclass: str,
        *,
        name: str | None = None,
        category: str = "DALiuGEApp",
        fields: Sequence[Graph] = (),
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        parent: str | None = None,
        encoding: str = "pickle",
    ) -> GraphBuilder:
        """An application."""
        own: Fields = [
            setting("dropclass", dropclass),
            setting("execution_time", 1, kind="Constraint", typed="Float"),
            setting("num_cpus", 1, kind="Constraint", typed="Integer"),
            setting("group_start", value=False, typed="Boolean"),
            setting("input_error_threshold", 0, typed="Integer"),
            setting("n_tries", 1, typed="Integer"),
            *fields,
            *(port(one, "InputPort", encoding=encoding) for one in inputs),
            *(port(one, "OutputPort", encoding=encoding) for one in outputs),
        ]
        return self._add(key, name or key, category, "Application", own, parent)

    def bash(
        self,
        key: str,
        command: str,
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        parent: str | None = None,
    ) -> GraphBuilder:
        """A shell command; ``{port}`` in it becomes the path of the file at that port."""
        own = [
            setting("command", command),
            setting("input_parser", "path", typed="Select"),
            setting("output_parser", "path", typed="Select"),
        ]
        return self.app(
            key,
            _BASH,
            category="BashShellApp",
            fields=own,
            inputs=inputs,
            outputs=outputs,
            parent=parent,
            encoding="path",
        )

    def file(self, key: str, *, path: str = "", parent: str | None = None) -> GraphBuilder:
        """A file."""
        own = [*_data_fields(_FILE, persist=True), argument("filepath", path)]
        return self._add(key, key, "File", "Data", [*own, port("io", "InputOutput")], parent=parent)

    def memory(self, key: str, *, parent: str | None = None) -> GraphBuilder:
        """A value in the node manager's memory."""
        own = [*_data_fields(_MEMORY, persist=False), port("io", "InputOutput")]
        return self._add(key, key, "Memory", "Data", own, parent=parent)

    def scatter(self, key: str, copies: Any, *, parent: str | None = None) -> GraphBuilder:
        """A scatter of ``copies`` branches, fed by ``array``, giving ``part`` inside."""
        own = [setting("num_of_copies", copies, kind="Construct", typed="Integer")]
        self._add(key, key, "Scatter", "Construct", own, parent=parent)
        inner: Fields = [
            setting("dropclass", "dlg.apps.simple.GenericScatterApp"),
            setting("execution_time", 1, kind="Constraint", typed="Float"),
            setting("num_cpus", 1, kind="Constraint", typed="Integer"),
            setting("group_start", value=False, typed="Boolean"),
            port("array", "InputPort"),
            port("part", "OutputPort"),
        ]
        node = self._nodes[key]
        node["isGroup"] = True
        node["inputApplicationName"] = "GenericScatterApp"
        node["inputApplicationType"] = "DALiuGEApp"
        node["inputApplicationId"] = self._id(key, "input-application")
        node["inputAppFields"] = self._numbered(f"{key}/input", inner)
        return self

    def link(self, source: str, target: str) -> GraphBuilder:
        """Connect an output port to an input port, both as ``key.port``."""
        (start, start_port), (end, end_port) = source.split("."), target.split(".")
        self._links.append(
            {
                "comment": "",
                "from": self._nodes[start]["id"],
                "fromPort": self._port(start, start_port, "OutputPort"),
                "to": self._nodes[end]["id"],
                "toPort": self._port(end, end_port, "InputPort"),
                "loop_aware": "0",
                "closesLoop": False,
            }
        )
        return self

    def build(self) -> Graph:
        """The logical graph."""
        return {
            "modelData": {
                "filePath": f"{self._name}.graph",
                "fileType": "Graph",
                "schemaVersion": "OJS",
                "readonly": False,
                "repo": "",
                "repoBranch": "",
                "repoService": "",
                "numLGNodes": len(self._nodes),
            },
            "activeGraphConfigId": None,
            "graphConfigurations": {},
            "nodeDataArray": list(self._nodes.values()),
            "linkDataArray": self._links,
        }

    def _add(  # a node is these five things and where it belongs
        self,
        key: str,
        name: str,
        category: str,
        kind: str,
        fields: Fields,
        parent: str | None,
    ) -> GraphBuilder:
        node: Graph = {
            "id": self._id(key),
            "name": name,
            "category": category,
            "categoryType": kind,
            "isGroup": False,
            "color": "#000000",
            "drawOrderHint": 0,
            "x": 0,
            "y": 0,
            "description": "",
            "comment": "",
            "repositoryUrl": "",
            "commitHash": "",
            "paletteDownloadUrl": "",
            "dataHash": "",
            "fields": self._numbered(key, fields),
        }
        for side in ("input", "output"):
            node[f"{side}AppFields"] = []
            node[f"{side}ApplicationName"] = ""
            node[f"{side}ApplicationType"] = "None"
            node[f"{side}ApplicationId"] = None
            node[f"{side}ApplicationDescription"] = ""
        if parent is not None:
            node["parentId"] = self._nodes[parent]["id"]
        self._nodes[key] = node
        return self

    def _numbered(self, key: str, fields: Fields) -> Fields:
        return [{**one, "id": self._id(key, one["name"], one["usage"])} for one in fields]

    def _port(self, key: str, name: str, usage: str) -> str:
        node = self._nodes[key]
        for one in (*node["fields"], *node["inputAppFields"]):
            if one["name"] == name and one["usage"] in {usage, "InputOutput"}:
                return str(one["id"])
        raise KeyError(f"{key} has no {usage} {name}")

    def _id(self, *parts: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, "/".join((self._name, *parts))))


def _data_fields(dropclass: str, *, persist: bool) -> Fields:
    return [
        setting("dropclass", dropclass),
        setting("data_volume", 1, kind="Constraint", typed="Float"),
        setting("persist", persist, typed="Boolean"),
        setting("group_end", value=False, typed="Boolean"),
        setting("streaming", value=False, typed="Boolean"),
    ]


def hello(*, greet: str = "beampipe") -> Graph:
    """One application writes ``hello.txt``: two drops."""
    builder = GraphBuilder("hello")
    builder.app(
        "greeter",
        "dlg.apps.simple.HelloWorldApp",
        fields=[argument("greet", greet)],
        outputs=["hello"],
    )
    return builder.file("text", path="hello.txt").link("greeter.hello", "text.io").build()


def bash_chain(*commands: str, name: str = "chain") -> Graph:
    """Shell commands one after the other, each writing a file that the next one waits for.

    ``{out}`` in a command is the path of its file. Two drops a command.
    """
    builder = GraphBuilder(name)
    for number, command in enumerate(commands, start=1):
        inputs = ["before"] if number > 1 else []
        builder.bash(f"step{number}", command, inputs=inputs, outputs=["out"])
        builder.file(f"file{number}").link(f"step{number}.out", f"file{number}.io")
        if number > 1:
            builder.link(f"file{number - 1}.io", f"step{number}.before")
    return builder.build()


def failing() -> Graph:
    """The second of three commands complains on standard error and exits with 3: six drops."""
    return bash_chain(
        "echo fine > {out}",
        "echo 'no calibration table' >&2; exit 3",
        "echo never > {out}",
        name="failing",
    )


def sleeping(seconds: float) -> Graph:
    """A command that takes its time, in a process that a cancellation can end: two drops."""
    return bash_chain(f"sleep {seconds}; echo done > {{out}}", name="sleeping")


def scattered(copies: int = 3) -> Graph:
    """A list is scattered over branches of one command each."""
    builder = GraphBuilder("scattered")
    seed = "def seed():\n    return list(range(12))\n"
    parsers = [
        setting("func_name", "seed"),
        setting("func_code", seed),
        setting("input_parser", "pickle", typed="Select"),
        setting("output_parser", "pickle", typed="Select"),
    ]
    pyfunc = "dlg.apps.pyfunc.PyFuncApp"
    builder.app("seed", pyfunc, category="PyFuncApp", fields=parsers, outputs=["array"])
    builder.memory("list").link("seed.array", "list.io")
    builder.scatter("beams", copies).link("list.io", "beams.array")
    builder.memory("part", parent="beams").link("beams.part", "part.io")
    builder.bash("beam", "echo ok > {out}", inputs=["part"], outputs=["out"], parent="beams")
    builder.file("image", parent="beams")
    return builder.link("part.io", "beam.part").link("beam.out", "image.io").build()


def unknown_class() -> Graph:
    """An application whose class nobody has installed: the engine refuses to append it."""
    builder = GraphBuilder("unknown-class").app("app", "no_such.package.App", outputs=["out"])
    return builder.file("file").link("app.out", "file.io").build()


def broken() -> Graph:
    """A scatter with no copies: the translator fails over it."""
    return scattered(0)
