"""The page at ``/``: what the archive holds, what was added last, and the fault switches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1d2733}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem .25rem 0;
border-bottom:1px solid #dde3ea;vertical-align:top}th{font-weight:600;color:#56657a}
td.n{font-variant-numeric:tabular-nums}code{background:#f1f4f8;padding:.1rem .3rem;border-radius:3px;
overflow-wrap:anywhere}button{font:inherit;margin:0 .3rem .3rem 0;padding:.15rem .6rem}
.on{color:#b3261e;font-weight:600}.off{color:#2e7d32}input,select{font:inherit;padding:.1rem .3rem}
#said{white-space:pre-wrap}
"""

_SCRIPT = """
async function call(method, path, body){
  const said = document.getElementById('said');
  const answer = await fetch(path, {method, headers: {'content-type': 'application/json'},
    body: body === undefined ? undefined : JSON.stringify(body)});
  const value = await answer.json();
  if (answer.ok) { location.reload(); return; }
  said.textContent = value.error.message + ' ' + value.error.hint;
}
document.querySelectorAll('button[data-fault]').forEach(button => button.addEventListener('click', () => {
  const path = '/sandbox/faults/' + button.dataset.archive;
  if (button.dataset.fault === '') call('DELETE', path);
  else call('PUT', path, JSON.parse(button.dataset.fault));
}));
document.getElementById('deposit').addEventListener('submit', event => {
  event.preventDefault();
  const form = new FormData(event.target);
  call('POST', '/sandbox/deposits', {source_identifier: form.get('source').trim(),
    beams: Number(form.get('beams')), quality: form.get('quality')});
});
"""

_SWITCHES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("busy", {"busy": True}),
    ("503", {"status": 503, "retry_after": 5}),
    ("slow (5 s)", {"latency": 5}),
    ("flaky (30 %)", {"error_rate": 0.3}),
    ("overflow", {"overflow": 1}),
    ("empty", {"empty": True}),
    ("html", {"html": True}),
    ("truncated", {"truncated": True}),
    ("down", {"down": True}),
    ("all off", None),
)


def render_page(
    *,
    base_url: str,
    counts: Mapping[str, int],
    latest: Sequence[Mapping[str, Any]],
    faults: Mapping[str, Mapping[str, Any]],
    queries: Mapping[str, Any],
) -> str:
    """The page as HTML.

    Parameters
    ----------
    base_url
        Without a slash at its end.
    counts
        Rows by table.
    latest
        The last files, the newest first.
    faults
        The switches that are on, by archive.
    queries
        The query log.
    """
    services = _table(
        ("Archive", "TAP service", "State", "Switches"),
        (
            (
                escape(name),
                f"<code>{escape(f'{base_url}/{name}/tap')}</code>",
                _state(switches),
                _buttons(name),
            )
            for name, switches in faults.items()
        ),
    )
    tables = _table(
        ("Table", "Rows"), ((f"<code>{escape(name)}</code>", f"{n:,}") for name, n in counts.items())
    )
    files = _table(
        ("File", "Observation", "Collection", "Quality", "Released"),
        (tuple(escape(str(value)) for value in row.values()) for row in latest),
    )
    log = _table(
        ("Time", "Archive", "Query", "Rows", "Status"),
        (
            (
                escape(entry["time"]),
                escape(entry["archive"]),
                f"<code>{escape(' '.join(entry['query'].split())[:160])}</code>",
                "" if entry["rows"] is None else str(entry["rows"]),
                escape(entry["status"]),
            )
            for entry in list(reversed(queries["requests"]))[:12]
        ),
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Sandbox archive</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>'
        "<body><h1>Sandbox archive</h1>"
        "<p>Two TAP 1.1 services with real HIPASS sources and invented observations. "
        "Nothing here is CASDA's or VizieR's own service.</p>"
        f"{services}<p id='said' class='on' role='status'></p>"
        f"<h2>Tables</h2>{tables}<h2>Latest deposits</h2>{_DEPOSIT_FORM}{files}"
        f"<h2>Queries ({queries['total']:,} so far)</h2>{log}"
        f"<script>{_SCRIPT}</script></body></html>"
    )


_DEPOSIT_FORM = (
    "<form id='deposit'><p><label>Source <input name='source' required value='HIPASSJ1320-12'></label> "
    "<label>Beams <input name='beams' type='number' min='1' max='36' value='2'></label> "
    "<label>Quality <select name='quality'><option>GOOD<option>UNCERTAIN<option>REJECTED</select></label> "
    "<button>Deposit</button></p></form>"
)


def _state(switches: Mapping[str, Any]) -> str:
    if not switches:
        return "<span class='off'>answers normally</span>"
    return f"<span class='on'>{escape(json.dumps(switches))}</span>"


def _buttons(archive: str) -> str:
    return "".join(
        f"<button data-archive='{escape(archive)}' "
        f"data-fault='{escape(json.dumps(body) if body else '')}'>{escape(label)}</button>"
        for label, body in _SWITCHES
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td class='n'>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
