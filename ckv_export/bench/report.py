"""A result for people: tables for the console and a README, one self-contained page with plots."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ckv_export.bench.svg import Series, line_plot
from ckv_export.bench.ways import PHASES
from ckv_export.cache import cache_sizes
from ckv_export.cache.units import bytes_text
from ckv_export.contract import ModelSpec

Table = tuple[str, Sequence[str], list[list[str]]]
Result = Mapping[str, Any]

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}figure{margin:1.5em 0}
figcaption{color:#555}"""


def tables(result: Result) -> list[Table]:
    """Every phase beside the first way; then rates, sweeps, break-even and traffic, if measured."""
    found = [_phase_table(result, phase) for phase in _phases(result)]
    found.append(_cost_table(result))
    found += _rate_table(result) + _sweep_tables(result["sweep"]) + _break_even(result)
    return found + _traffic_table(result["traffic"])


def _phases(result: Result) -> list[str]:
    """Those that any way has, in the order of a request."""
    return [p for p in PHASES if any(p in way["phases"] for way in result["ways"])]


def _phase_table(result: Result, phase: str) -> Table:
    timed = [way for way in result["ways"] if phase in way["phases"]]
    first = timed[0]["phases"][phase]["p50_ms"]
    rows = []
    for way in timed:
        timing = way["phases"][phase]
        numbers = [f"{timing[f'p{p}_ms']:.3f}" for p in (50, 90, 99)]
        times = f"{timing['p50_ms'] / first:.2f}"
        steady = "" if timing["stable"] else "not stable"
        rows.append([way["name"], *numbers, times, f"{timing['per_second']:.1f}", steady])
    heads = ("way", "p50 ms", "p90 ms", "p99 ms", "x first", "users/s", "")
    return f"{phase} ({_sizes_text(result)})", heads, rows


def _sizes_text(result: Result) -> str:
    settings = result["settings"]
    sizes = ", ".join(f"{name} {size}" for name, size in settings["sizes"].items())
    return f"{sizes}, threads {settings['threads']}"


def _cost_table(result: Result) -> Table:
    rows = [
        [
            way["name"],
            bytes_text(way["fetched_bytes"]),
            bytes_text(way["host_to_device_bytes"]),
            f"{way['load_seconds']:.3f}",
            f"{way['first_call_seconds']:.3f}",
            "-" if way["host_bytes"] is None else bytes_text(way["host_bytes"]),
            "-" if way["gpu_bytes"] is None else bytes_text(way["gpu_bytes"]),
            f"{way['worst_score_error']:.1e}",
        ]
        for way in result["ways"]
    ]
    heads = ("way", "fetched", "to device", "load s", "first call s", "host", "GPU", "score error")
    return "What a call moves and a start costs", heads, rows


def _rate_table(result: Result) -> list[Table]:
    rows = [
        [way["name"], f"{way['rate']['bound_ms']:g}", _rate_text(way["rate"])]
        for way in result["ways"]
        if way["rate"] is not None
    ]
    title = "Highest rate with p99 within the bound (open loop, Poisson arrivals, queueing counted)"
    return [(title, ("way", "bound ms", "requests/s"), rows)] if rows else []


def _rate_text(rate: Mapping[str, Any]) -> str:
    found = rate["requests_per_second"]
    return "too slow to try: more --rate-seconds" if found is None else f"{found:.2f}"


def _sweep_tables(points: Sequence[Mapping[str, Any]]) -> list[Table]:
    found: list[Table] = []
    for axis in dict.fromkeys(p["axis"] for p in points):
        mine = [p for p in points if p["axis"] == axis]
        for phase in ("decode", "request"):
            names = _swept_names(mine, phase)
            rows = [[str(p["value"]), *_p50s(p, names, phase)] for p in mine]
            if names:
                found.append((f"{phase}, p50 ms by {axis}", (axis, *names), rows))
    return found


def _swept_names(points: Sequence[Mapping[str, Any]], phase: str) -> list[str]:
    """Ways that have the phase at a point at least: at others they may have been left out."""
    return list(dict.fromkeys(w["name"] for p in points for w in p["ways"] if phase in w["phases"]))


def _p50s(point: Mapping[str, Any], names: Sequence[str], phase: str) -> list[str]:
    timed = {w["name"]: w["phases"] for w in point["ways"] if phase in w["phases"]}
    return [f"{timed[name][phase]['p50_ms']:.3f}" if name in timed else "-" for name in names]


def break_even(compact: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, float | None]:
    """At which link the compact cache and a fetched full one cost the same.

    `compact`, `full`: ways (or points of a sweep) with ``fetched_bytes`` and ``phases``. Fetching
    fewer bytes saves ``saved_bytes``; gathering adds ``added_ms`` to a call. The compact cache wins
    on every link below ``bytes_per_second``, None where it wins on every link there is.
    """
    saved = full["fetched_bytes"] - compact["fetched_bytes"]
    added = compact["phases"]["decode"]["p50_ms"] - full["phases"]["decode"]["p50_ms"]
    return {
        "saved_bytes": saved,
        "added_ms": added,
        "bytes_per_second": 1000 * saved / added if added > 0 else None,
    }


def _break_even(result: Result) -> list[Table]:
    places = [("as measured", result)]
    places += [(f"{p['axis']} {p['value']}", p) for p in result["sweep"]]
    rows = []
    for title, place in places:
        ways = {w["name"]: w for w in place["ways"]}
        held, fetched = (ways.get(f"ONNX Runtime, full KV {n}") for n in ("held", "fetched"))
        compact = ways.get("ONNX Runtime, compact cache")
        if held is None or fetched is None or compact is None:
            continue
        if any("decode" not in way["phases"] for way in (held, compact)):
            continue
        full = {"fetched_bytes": fetched["fetched_bytes"], "phases": held["phases"]}
        even = break_even(compact, full)
        link = even["bytes_per_second"]
        rate = "every link" if link is None else f"{bytes_text(link)}/s"
        rows.append([title, bytes_text(even["saved_bytes"] or 0), f"{even['added_ms']:.3f}", rate])
    heads = ("where", "transfer saved", "gather added ms", "compact wins below")
    return [("Break-even: transfer saved against gather added", heads, rows)] if rows else []


def _traffic_table(traffic: Mapping[str, Any] | None) -> list[Table]:
    if traffic is None:
        return []
    waste = traffic["waste"]
    title = (
        f"Traffic: {len(traffic['lengths'])} requests, buckets {traffic['buckets']}, "
        f"{waste['share_padding']:.1%} of the events are padding"
    )
    rows = [
        [w["name"], *(f"{w['request'][f'p{p}_ms']:.3f}" for p in (50, 90, 99))]
        for w in traffic["ways"]
    ]
    return [(title, ("way", "p50 ms", "p90 ms", "p99 ms"), rows)]


def markdown(result: Result) -> str:
    """The tables for a README, and where they come from."""
    parts = [f"<!-- {result['environment']['command']} -->", _machine_text(result), ""]
    for title, heads, rows in tables(result):
        parts += [f"**{title}**", "", _markdown_row(heads), _markdown_row(["---"] * len(heads))]
        parts += [_markdown_row(row) for row in rows] + [""]
    return "\n".join(parts)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machine_text(result: Result) -> str:
    made = result["environment"]
    machine, versions = made["machine"], made["versions"]
    used = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    gpus = ", ".join(gpu["name"] for gpu in made["gpus"]) or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpus}; {used}; commit "
        f"{made['commit'][:12]}, {made['date']}."
    )


def page(result: Result) -> str:
    """One HTML page with everything inside it."""
    name = html.escape(result["bundle"]["name"])
    body = [f"<h1>{name}: what it costs to serve</h1><p>{html.escape(_machine_text(result))}</p>"]
    body.append(f"<p><code>{html.escape(result['environment']['command'])}</code></p>")
    body += [_html_table(*table) for table in tables(result)]
    body += [f"<figure>{plot}</figure>" for plot in plots(result)]
    left = [f"<li>{html.escape(w['name'])}: {html.escape(w['reason'])}" for w in result["left_out"]]
    body.append(f"<h2>Left out</h2><ul>{''.join(left)}</ul>")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title>"
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _html_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<h2>{html.escape(title)}</h2><table>{line(heads, 'th')}{body}</table>"


def plots(result: Result) -> list[str]:
    """SVG: sizes swept vs latency, latency vs rate, bytes per user vs history."""
    points = result["sweep"]
    drawn = [
        line_plot(f"{axis} and latency of a request", axis, "p50 ms", _swept(points, axis))
        for axis in dict.fromkeys(p["axis"] for p in points)
    ]
    rates = [
        Series(w["name"], sorted((t["rate"], t["p99_ms"]) for t in w["rate"]["trials"]))
        for w in result["ways"]
        if w["rate"] is not None and w["rate"]["trials"]
    ]
    if rates:
        drawn.append(line_plot("Latency and rate", "requests/s", "p99 ms", rates))
    sizes = _sizes_series(ModelSpec.from_dict(result["bundle"]["model"]))
    return [*drawn, line_plot("Bytes of one user", "events of history", "bytes", sizes)]


def _swept(points: Sequence[Mapping[str, Any]], axis: str) -> list[Series]:
    mine = [p for p in points if p["axis"] == axis]
    return [
        Series(
            name,
            [
                (p["value"], w["phases"]["request"]["p50_ms"])
                for p in mine
                for w in p["ways"]
                if w["name"] == name and "request" in w["phases"]
            ],
        )
        for name in _swept_names(mine, "request")
    ]


def _sizes_series(spec: ModelSpec) -> list[Series]:
    lengths = [spec.max_len * i // 8 for i in range(1, 9)]
    sizes = [cache_sizes(spec, history=n) for n in lengths]
    found = {
        "compact, fp16 user parts": [s.compact_bytes for s in sizes],
        "full KV, fp16": [s.full[0].bytes_per_user for s in sizes],
        "full KV, fp32": [s.full[1].bytes_per_user for s in sizes],
    }
    return [Series(n, list(zip(lengths, values, strict=True))) for n, values in found.items()]
