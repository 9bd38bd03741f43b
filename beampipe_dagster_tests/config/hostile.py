"""Documents that nobody means well with, or that went wrong on the way: what they are, not what they get."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Final

HEAD: Final = """\
apiVersion: beampipe.dev/v2
kind: ProjectConfig
metadata: {id: t}
adapters: {required: [casda]}
"""


def _laughs() -> str:
    names = "abcdefghi"
    lines = [f"a: &a [{', '.join(['x'] * 9)}]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]" for p, n in pairwise(names)]
    return "\n".join(lines)


def _query(template: str) -> str:
    return HEAD + f"discovery: {{queries: [{{name: a, adapter: casda, template: {json.dumps(template)}}}]}}\n"


def _transform(text: str) -> str:
    return HEAD + f"definitions: {{transforms: {{a: {text}}}}}\n"


PROJECTS: Final[dict[str, str | bytes]] = {
    "nothing": "",
    "only_a_comment": "# survey\n",
    "a_number": "42",
    "a_list": "- apiVersion\n- kind\n",
    "zero_bytes": b"\x00\x00\x00",
    "latin_1": "metadata: {id: é}".encode("latin-1"),
    "utf_16": "a: 1".encode("utf-16"),
    "half_a_surrogate": "a: \ud800",
    "escape_sequence": "a: \x1b[2J",
    "byte_order_mark": "\ufeffapiVersion: a\n",
    "tab_indentation": "metadata:\n\tid: t\n",
    "two_documents": "a: 1\n---\nb: 2\n",
    "key_twice": HEAD + "metadata: {id: other}\n",
    "list_as_key": "[a, b]: 1\n",
    "null_as_key": "~: 1\n",
    "a_million_brackets": "[" * 1_000_000,
    "sixty_five_levels": "a: " + "[" * 65 + "]" * 65,
    "billion_laughs": _laughs(),
    "long_text_repeated": "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 500) + "]\n",
    "alias_of_itself": "a: &a [*a]\n",
    "alias_of_nothing": "a: *" + "b" * 10_000 + "\n",
    "python_object": "a: !!python/object/apply:os.system ['id']\n",
    "long_integer": "a: " + "9" * 100_000 + "\n",
    "long_hexadecimal": "a: 0x" + "f" * 100_000 + "\n",
    "too_large": "#" * (1024 * 1024 + 1),
    "unknown_section": HEAD + "discvoery: {}\n",
    "merge_key": HEAD + "<<: {metadata: {id: other}}\n",
    "tag_of_its_own": HEAD + "graph: !include other.yaml\n",
    "null_section": HEAD + "discovery: ~\n",
    "huge_unsigned": HEAD.replace("[casda]", "[casda], tap: {timeout_seconds: 18446744073709551616}"),
    "negative_retries": HEAD.replace("[casda]", "[casda], tap: {retries: -1}"),
    "limit_beyond_64_bits": HEAD + "automation: {discovery: {batch_size: 9223372036854775808}}\n",
    "limit_as_text": HEAD + "automation: {discovery: {batch_size: '5'}}\n",
    "limits_below_one": HEAD + "automation: {discovery: {batch_size: 0, stale_after_hours: -1}}\n",
    "two_graphs": HEAD + "graph: {url: 'http://x', path: x, sha256: " + "z" * 64 + "}\n",
    "circle_of_chains": HEAD
    + "definitions: {transforms: {a: {kind: chain, steps: [b]}, b: {kind: chain, steps: [a]}}}\n",
    "pattern_that_is_none": _transform("{kind: regex_extract, pattern: '('}"),
    "pattern_with_look_ahead": _transform("{kind: regex_extract, pattern: '(?=a)'}"),
    "pattern_of_a_page": _transform("{kind: regex_extract, pattern: '" + "(a|b)*" * 1_000 + "'}"),
    "web_assembly": HEAD + "extension: {wasm_sha256: " + "a" * 64 + ", hooks: [manifest]}\n",
    "unquoted_variable": _query("SELECT * FROM t WHERE id = {source_identifier}"),
    "variable_as_identifier": _query('SELECT * FROM "{source_name}"'),
    "variable_behind_a_fake_quote": _query("SELECT * FROM t -- it's\nWHERE id = {source_identifier}"),
    "variable_that_is_none": _query("SELECT * FROM t WHERE id = '{source_identifer}'"),
    "password_in_a_url": HEAD.replace("[casda]", "[casda], casda_tap_url: 'https://me:pw@x/tap'"),
    "private_key": HEAD.replace("{id: t}", '{id: t, description: "-----BEGIN RSA PRIVATE KEY-----"}'),
}


def _profile(**changes: Any) -> str:
    deployment = {"kind": "rest_remote", "deploy_host": "dim", **changes.pop("deployment", {})}
    return json.dumps({"name": "p", "translation": {}, "deployment": deployment, **changes})


def _slurm(**deployment: Any) -> str:
    base = {
        "kind": "slurm_remote",
        "login_node": "login",
        "account": "a",
        "home_dir": "/h",
        "log_dir": "/h/log",
        "dlg_root": "/h/dlg",
    }
    return json.dumps({"name": "s", "translation": {}, "deployment": {**base, **deployment}}, indent=1)


PROFILES: Final[dict[str, str | bytes]] = {
    "nothing": "",
    "a_list": "[]",
    "not_a_number": '{"name": NaN}',
    "cut_off": '{"name": "p",\n "translation": {',
    "not_utf_8": b'{"name": "\xff"}',
    "half_a_surrogate": '{"name": "\\ud800"}',
    "a_million_brackets": "[" * 1_000_000,
    "endless_number": '{"name": 1' + "0" * 400 + "}",
    "only_a_name": '{"name": "p"}',
    "path_as_name": _profile(name="../../etc/passwd"),
    "unknown_kind": _profile(deployment={"kind": "k8s"}),
    "port_as_text": _profile(deployment={"deploy_port": "8001"}),
    "port_beyond_the_last": _profile(deployment={"deploy_port": 65_536}),
    "unknown_part": _profile(translation={"algoo": "metis"}),
    "slot_that_climbs": _slurm(ssh_credential="a..b"),
    "relative_paths": _slurm(home_dir="~", log_dir="logs"),
    "no_nodes": _slurm(resources={"nodes": 0}),
    "password_field": _profile(deployment={"password": "hunter2"}),
    "key_in_the_template": _slurm(slurm_template="-----BEGIN OPENSSH PRIVATE KEY-----\nabc"),
    "token_in_the_environment": _slurm(environment_setup="export API_TOKEN=abcdef"),
    "password_in_a_url": _profile(translation={"tm_url": "https://me:pw@tm:8084"}),
}
