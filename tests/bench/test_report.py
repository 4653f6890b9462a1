"""Tables, plots and pages of results made up for the purpose."""

from __future__ import annotations

import html
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from ckv_testing.draw import make_spec
from ckv_testing.results import result, timing, way

from ckv_export.bench.report import _sizes_series as sizes_series
from ckv_export.bench.report import break_even, markdown, page, plots, tables
from ckv_export.bench.svg import Series, line_plot
from ckv_export.bench.ways import PHASES


def measured(rng: np.random.Generator) -> dict:
    """A result with everything in it."""
    ways = [
        way("ONNX Runtime, compact cache", decode=timing(rng, 12), request=timing(rng, 14)),
        way("ONNX Runtime, full KV held", decode=timing(rng, 10), request=timing(rng, 10)),
        way("ONNX Runtime, full KV fetched", request=timing(rng, 20)),
    ]
    ways[2]["fetched_bytes"] = 2_012_000
    trial = {"rate": 5.0, "served": 100, "p50_ms": 20.0, "p99_ms": 40.0, "within": True}
    ways[0]["rate"] = {"bound_ms": 50.0, "requests_per_second": 5.0, "trials": [trial]}
    made = result(*ways)
    keys = ("name", "fetched_bytes", "phases")
    made["sweep"] = [
        {"axis": "history", "value": n, "ways": [{k: w[k] for k in keys} for w in ways]}
        for n in (10, 100)
    ]
    made["traffic"] = {
        "lengths": [1, 5],
        "buckets": [5],
        "waste": {
            "real_events": 6,
            "padded_events": 10,
            "share_padding": 0.4,
            "requests_by_bucket": {"5": 2},
        },
        "ways": [{"name": "a|b", "request": timing(rng, 3)}],
    }
    return made


def test_ratios_are_to_the_first_way(rng: np.random.Generator):
    found = {title: rows for title, _, rows in tables(measured(rng))}
    (request,) = (rows for title, rows in found.items() if title.startswith("request (batch 1"))
    assert [float(row[4]) for row in request] == pytest.approx([1.0, 10 / 14, 20 / 14], rel=0.03)


def test_every_phase_of_any_way_has_a_table_that_says_what_is_not_stable(
    rng: np.random.Generator,
):
    made = measured(rng)
    made["ways"][1]["phases"]["decode"]["stable"] = False
    found = {title.split(" (")[0]: rows for title, _, rows in tables(made)}
    assert [[row[0][-4:], row[-1]] for row in found["decode"]] == [
        ["ache", ""],
        ["held", "not stable"],
    ]
    assert len(found["request"]) == 3


def test_phases_stand_in_the_order_of_a_request_with_their_times(rng: np.random.Generator):
    phases = {phase: timing(rng, 10 + n) for n, phase in enumerate(PHASES)}
    made = tables(result(way("a", **dict(reversed(phases.items())))))
    assert [title.split(" (")[0] for title, *_ in made[:-1]] == list(PHASES)
    for (_, heads, ((*cells, _),)), one in zip(made, phases.values(), strict=False):
        shown = dict(zip(heads, cells, strict=False))
        numbers = {f"p{p} ms": f"{one[f'p{p}_ms']:.3f}" for p in (50, 90, 99)}
        rate = {"x first": "1.00", "users/s": f"{one['per_second']:.1f}"}
        assert shown == {"way": "a"} | numbers | rate


def test_costs_stand_under_their_heads(rng: np.random.Generator):
    made = measured(rng)
    made["ways"][0] |= {"host_to_device_bytes": 3_000, "host_bytes": 2_000_000}
    made["ways"][0]["load_seconds"] = 0.25
    made["ways"][1] |= {"host_bytes": 0, "gpu_bytes": 4_000_000, "worst_score_error": 1.5e-7}
    first, second, _ = next(rows for title, _, rows in tables(made) if title.startswith("What a"))
    assert first[1:] == ["12.0 kB", "3.00 kB", "0.250", "0.100", "2.00 MB", "-", "0.0e+00"]
    assert second[5:] == ["0 B", "4.00 MB", "1.5e-07"]


def test_each_axis_of_a_sweep_has_its_own_tables(rng: np.random.Generator):
    made = measured(rng)
    alone = way("a", request=timing(rng, 1))
    made["sweep"].append({"axis": "batch", "value": 4, "ways": [alone]})
    found = {title: rows for title, _, rows in tables(made)}
    swept = {title: [row[0] for row in found[title]] for title in found if "p50 ms by" in title}
    assert swept == {
        "decode, p50 ms by history": ["10", "100"],
        "request, p50 ms by history": ["10", "100"],
        "request, p50 ms by batch": ["4"],
    }


def test_a_rate_that_is_not_known_is_not_shown_as_one(rng: np.random.Generator):
    made = measured(rng)
    for one, rate in zip(made["ways"][1:], (None, 0.0), strict=True):
        one["rate"] = {"bound_ms": 0.25, "requests_per_second": rate, "trials": []}
    (rows,) = (rows for title, _, rows in tables(made) if title.startswith("Highest rate"))
    assert [row[1:] for row in rows] == [
        ["50", "5.00"],
        ["0.25", "too slow to try: more --rate-seconds"],
        ["0.25", "0.00"],
    ]


def test_a_way_left_out_at_a_size_is_shown_at_the_others(rng: np.random.Generator):
    made = measured(rng)
    first, second = made["sweep"]
    del first["ways"][1]
    second["ways"][2]["phases"] = {}
    heads, rows = next((h, r) for t, h, r in tables(made) if t == "request, p50 ms by history")
    assert sorted(heads[1:]) == sorted(way["name"] for way in made["ways"])
    held, fetched = (heads.index(f"ONNX Runtime, full KV {kept}") for kept in ("held", "fetched"))
    assert [[row[i] == "-" for i in (held, fetched)] for row in rows] == [
        [True, False],
        [False, True],
    ]
    swept = ElementTree.fromstring(plots(made)[0])
    circles = swept.findall("{*}circle")
    assert len(circles) == 4
    assert {circle.attrib["cx"] for circle in circles} == {"70.0", "600.0"}  # the two sizes


def test_break_even_is_where_both_cost_the_same(rng: np.random.Generator):
    made = measured(rng)
    compact, held, fetched = made["ways"]
    even = break_even(compact, {**held, "fetched_bytes": fetched["fetched_bytes"]})
    link = even["bytes_per_second"]
    assert link is not None
    costs = [
        w["phases"]["decode"]["p50_ms"] + 1000 * size / link
        for w, size in ((compact, 12_000), (held, 2_012_000))
    ]
    assert costs[0] == pytest.approx(costs[1])
    faster = way("c", decode=timing(rng, 5))
    assert break_even(faster, held)["bytes_per_second"] is None
    assert break_even(held, held)["bytes_per_second"] is None


def test_break_even_is_told_of_every_place_that_has_all_it_needs(rng: np.random.Generator):
    made = measured(rng)
    rows = next(rows for title, _, rows in tables(made) if title.startswith("Break-even"))
    assert [row[0] for row in rows] == ["as measured", "history 10", "history 100"]
    assert [row[1] for row in rows] == ["2.00 MB"] * 3
    # At a size of a sweep it is that size's.
    half = made["sweep"][1]["ways"][2]
    made["sweep"][1]["ways"][2] = half | {"fetched_bytes": half["fetched_bytes"] // 2}
    rows = next(rows for title, _, rows in tables(made) if title.startswith("Break-even"))
    assert [row[1] for row in rows] == ["2.00 MB", "2.00 MB", "994 kB"]
    for point, lacking in zip(made["sweep"], (0, 1), strict=True):
        kept = point["ways"][lacking]
        point["ways"][lacking] = kept | {"phases": {"request": kept["phases"]["request"]}}
    del made["ways"][2]
    assert not [title for title, *_ in tables(made) if title.startswith("Break-even")]


def test_traffic_says_what_was_padded_and_its_times(rng: np.random.Generator):
    made = measured(rng)
    ((title, heads, rows),) = (each for each in tables(made) if each[0].startswith("Traffic"))
    assert title == "Traffic: 2 requests, buckets [5], 40.0% of the events are padding"
    (one,) = made["traffic"]["ways"]
    assert rows == [["a|b", *(f"{one['request'][f'p{p}_ms']:.3f}" for p in (50, 90, 99))]]
    assert heads == ("way", "p50 ms", "p90 ms", "p99 ms")


def test_a_page_says_where_it_was_measured(rng: np.random.Generator):
    made = measured(rng)
    made["environment"]["commit"] = "0123456789abcdef"
    machine = "c, 2 cores, no GPU; torch 2; commit 0123456789ab, 2026-01-01."
    assert machine in page(made)
    assert machine in markdown(made)
    made["environment"]["gpus"] = [{"name": "X"}, {"name": "Y"}]
    assert "c, 2 cores, X, Y; torch 2" in page(made)
    assert "<th>p50 ms</th>" in page(made)


def test_rates_are_plotted_with_the_latency_that_is_bounded(rng: np.random.Generator):
    made = measured(rng)
    trials = [{"rate": rate, "p50_ms": 1.0, "p99_ms": 10 * rate} for rate in (5.0, 2.0, 3.0)]
    made["ways"][0]["rate"]["trials"] = trials
    made["ways"][1]["rate"] = {"bound_ms": 50.0, "requests_per_second": None, "trials": []}
    drawn = ElementTree.fromstring(plots(made)[-2])
    points, _ = (line.attrib["points"].split() for line in drawn.findall("{*}polyline"))
    places = [tuple(map(float, point.split(","))) for point in points]
    xs, ys = zip(*places, strict=True)
    # Along the lower edge from slow to fast, and in proportion, which is a straight line.
    assert sorted(xs) == list(xs)
    assert (xs[0], xs[-1]) == (70, 600)
    assert (ys[0], ys[-1]) == (350, 40)
    assert (ys[0] - ys[1]) / 310 == pytest.approx((xs[1] - xs[0]) / 530, abs=0.01)


def test_of_a_sweep_medians_are_plotted(rng: np.random.Generator):
    made = measured(rng)
    before, timings = plots(made)[0], made["sweep"][1]["ways"][0]["phases"]["request"]
    made["sweep"][1]["ways"][0]["phases"]["request"] = timings | {"p90_ms": 70, "p99_ms": 90}
    assert plots(made)[0] == before
    made["sweep"][1]["ways"][0]["phases"]["request"] = timings | {"p50_ms": 1}
    assert plots(made)[0] != before


def test_sizes_of_what_is_cached_are_those_of_their_names():
    series = {s.name: dict(s.points) for s in sizes_series(make_spec("sim"))}
    compact, half, full = series.values()
    assert (len(compact), max(compact)) == (8, make_spec("sim").max_len)
    assert list(series) == ["compact, fp16 user parts", "full KV, fp16", "full KV, fp32"]
    assert all(compact[n] < half[n] and full[n] == 2 * half[n] for n in full)


def test_pages_hold_everything_and_nothing_unescaped(rng: np.random.Generator):
    made = measured(rng)
    made["environment"]["command"] = "bench x<z>"
    made["environment"]["versions"]["absent"] = None
    made["left_out"] = [{"name": "w<1>", "reason": "no <GPU>"}]
    made["ways"][0]["name"] += "<2>"
    text = page(made)
    for shown in ("x<y>", "x<z>", "w<1>", "no <GPU>", "cache<2>"):
        assert shown not in text
        assert html.escape(shown) in text
    assert "absent" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("<svg") == len(plots(made)) == 3
    shown = markdown(made)
    assert "a\\|b" in shown
    assert not [title for title, *_ in tables(made | {"traffic": None}) if "Traffic" in title]
    for title, _, rows in tables(made):
        assert title in shown
        assert len(rows) > 0


@pytest.mark.parametrize(
    "points", [[], [(1.0, 0.0)], [(3.0, 4.0)], [(1.0, 1.0), (1000.0, 1e6)], [(5.0, 2.0)] * 2]
)
def test_plots_are_well_formed_and_inside_their_frame(points: list):
    text = line_plot("a < b", "x", "y", [Series("one & two", points), Series("none", [])])
    root = ElementTree.fromstring(text)
    drawn = [p for p in points if min(p) > 0]
    circles = root.findall("{*}circle")
    assert len(circles) == len(drawn)
    for circle in circles:
        assert 70 <= float(circle.attrib["cx"]) <= 600
        assert 40 <= float(circle.attrib["cy"]) <= 350
        assert math.isfinite(float(circle.attrib["cx"]))


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((2, 30), ["2", "5", "10", "20"]),
        ((0.02, 0.19), ["0.02", "0.03", "0.04", "0.06", "0.08", "0.1", "0.15"]),
        ((1, 999), ["1", "2", "5", "10", "20", "50", "100", "200", "500"]),
        ((1, 1000), ["1", "10", "100", "1000"]),
        ((3, 4), ["3", "4"]),
        ((1.1, 2.3), ["1.5", "2"]),
        ((10, 10), ["8", "10"]),
    ],
)
def test_axes_are_told_in_round_numbers(ends: tuple[float, float], ticks: list[str]):
    """Of each axis those within it; a single number has some room on both sides."""
    across = [(end, 1.0) for end in ends]
    for points, anchor in ((across, "middle"), ([(y, x) for x, y in across], "end")):
        root = ElementTree.fromstring(line_plot("", "x", "y", [Series("", points)]))
        texts = [t.text for t in root.findall("{*}text") if t.get("text-anchor") == anchor]
        assert [text for text in texts if text != "x"] == ticks
    (alone,) = ElementTree.fromstring(line_plot("", "x", "y", [Series("", [(7.0, 9.0)])])).findall(
        "{*}circle"
    )
    assert (alone.attrib["cx"], alone.attrib["cy"]) == ("335.0", "195.0")


def test_lines_are_told_apart_and_named_in_their_order():
    names = [f"way {n}" for n in range(28)]
    text = line_plot("", "x", "y", [Series(name, [(1.0, 2.0), (3.0, 4.0)]) for name in names])
    root = ElementTree.fromstring(text)
    lines = root.findall("{*}polyline")
    pens = [(line.attrib["stroke"], line.attrib["stroke-dasharray"]) for line in lines]
    assert pens[::2] == pens[1::2], "the legend's are the lines' own"
    assert len(set(pens)) == len(names)
    legend = [t for t in root.findall("{*}text") if t.text in names]
    heights = [float(t.attrib["y"]) for t in legend]
    assert [t.text for t in legend] == names
    assert sorted(set(heights)) == heights
    assert heights[-1] < float(root.attrib["viewBox"].split()[3])
