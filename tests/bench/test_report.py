"""Tables, plots and pages of results made up for the purpose."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from ckv_testing.results import result, timing, way

from ckv_export.bench.report import break_even, markdown, page, plots, tables
from ckv_export.bench.svg import Series, line_plot


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


def test_a_rate_that_is_not_known_is_not_shown_as_one(rng: np.random.Generator):
    made = measured(rng)
    made["ways"][1]["rate"] = {"bound_ms": 50.0, "requests_per_second": None, "trials": []}
    (rows,) = (rows for title, _, rows in tables(made) if title.startswith("Highest rate"))
    assert [row[2] for row in rows] == ["5.00", "too slow to try: more --rate-seconds"]


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
    assert len(swept.findall("{*}circle")) == 4


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


def test_pages_hold_everything_and_nothing_unescaped(rng: np.random.Generator):
    made = measured(rng)
    text = page(made)
    assert "x&lt;y&gt;" in text
    assert "x<y>" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("<svg") == len(plots(made)) == 3
    shown = markdown(made)
    assert "a\\|b" in shown
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
