"""Flips, their margins and what they cost, counted in loops."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from ckv_testing.draw import make_spec
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered, scored

from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.gate import judge
from ckv_export.parity.inputs import Case
from ckv_export.parity.replay import CaseRun, comparable, forced_entries, kept
from ckv_export.parity.routing import EDGES, QUANTILES, margins, routing_report, score_errors
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, TOLERANCES

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


def made_up(rng: np.random.Generator, layers: int = 2) -> CaseRun:
    """Two users, six cached and two appended events, some of them masked; K alone has a pool."""
    shapes = {"cache_k_index": (2, layers, 6), "append_k_index": (2, layers, 2)}
    expected = {n: rng.integers(0, 5, s).astype(np.int32) for n, s in shapes.items()}
    got = {n: np.where(rng.random(a.shape) < 0.4, (a + 1) % 5, a) for n, a in expected.items()}
    spread = {n: rng.random(a.shape).astype(np.float32) for n, a in expected.items()}
    inputs = {"history_mask": rng.random((2, 6)) < 0.7, "append_mask": rng.random((2, 2)) < 0.7}
    truth = rng.random((2, 3)).astype(np.float32)
    case = ExpectedCase(Case("made up", inputs), {**expected, "score": truth}, spread)
    decoded = {"score": truth + 0.25, "append_k_index": got["append_k_index"]}
    served = {"score": truth + 0.5, "append_k_index": got["append_k_index"]}
    return CaseRun(case, {"cache_k_index": got["cache_k_index"]}, None, decoded, served)


def test_counts_are_those_of_loops(rng: np.random.Generator):
    runs = [made_up(rng), made_up(rng)]
    report = routing_report(runs)
    assert [(layer.layer, layer.side) for layer in report.layers] == [(0, "k"), (1, "k")]
    for found in report.layers:
        flipped, others = [], []
        for run in runs:
            for group, mask in (("cache", "history"), ("append", "append")):
                name = f"{group}_k_index"
                got = (run.cache if group == "cache" else run.decoded)[name]
                for b, n in np.ndindex(*got.shape[::2]):
                    if not run.case.case.inputs[f"{mask}_mask"][b, n]:
                        continue
                    place = (b, found.layer, n)
                    same = got[place] == run.case.outputs[name][place]
                    (others if same else flipped).append(float(run.case.margins[name][place]))
        assert (found.tokens, found.flips) == (len(flipped) + len(others), len(flipped))
        assert found.rate == pytest.approx(len(flipped) / found.tokens)
        for side, values in ((found.flipped, flipped), (found.unflipped, others)):
            assert side.count == len(values)
            assert side.quantiles == pytest.approx(np.quantile(values, QUANTILES))
            edges = [-np.inf, *EDGES, np.inf]
            wanted = [
                sum(low <= v < high for v in values) for low, high in itertools.pairwise(edges)
            ]
            assert list(side.histogram) == wanted


def test_served_counts_flips_and_forced_leaves_flipped_users_out(rng: np.random.Generator):
    run = made_up(rng)
    report = routing_report([run])
    same = (run.decoded["append_k_index"] == run.case.outputs["append_k_index"]).all(axis=(1, 2))
    assert report.served.scores == 6
    assert report.served.max == pytest.approx(0.5, abs=1e-6)
    assert report.forced.scores == 3 * same.sum()
    if same.any():
        assert report.forced.median == pytest.approx(0.25, abs=1e-6)


def test_pool_of_one_row_has_no_margins():
    found = margins(np.array([np.inf, 0.5]))
    assert (found.count, found.quantiles[0]) == (1, 0.5)
    assert margins(np.full(3, np.inf)).quantiles == ()
    assert sum(margins(np.zeros(0)).histogram) == 0


def test_score_errors():
    found = score_errors([(np.array([1.0, 2.0]), np.array([1.0, 2.5])), (np.zeros(2), np.zeros(2))])
    assert (found.scores, found.max, found.mean, found.median) == (4, 0.5, 0.125, 0.0)
    assert found.p99 == pytest.approx(0.5, abs=0.02)
    assert score_errors([]).max is None
    assert score_errors([(np.array([np.nan]), np.zeros(1))]).max is None


def test_report_without_pools_is_empty():
    report = routing_report([scored(np.ones((1, 2)), np.ones((1, 2)))])
    assert report.layers == ()
    assert report.served.max == 0.0


# -- forced rows


def test_only_what_no_flip_below_touches_is_comparable():
    """A flip in layer 0 changes that event's and later events' keys in all layers above."""
    index = np.zeros((1, 3, 5), np.int32)
    got = index.copy()
    got[0, 0, 2] = 1
    got[0, 1, 4] = 1
    case = ExpectedCase(Case("x", {}), {"cache_k_index": index}, {"cache_k_index": index + 1.0})
    same = comparable(case, {"cache_k_index": got})
    assert same[0].tolist() == [
        [True] * 5,
        [True, True, False, False, False],
        [True, True, False, False, False],
    ]


def test_forced_entries_are_the_references_behind_a_flip(exported: Exported):
    spec = dataclasses.replace(exported("sim").spec, window=None)
    expected = {"cache_k_index": np.zeros((1, 2, 3), np.int32)}
    expected["cache_k_user"] = np.zeros((1, 2, 3, 1), np.float32)
    case = ExpectedCase(Case("x", {}), expected, {"cache_k_index": np.ones((1, 2, 3))})
    got = {n: a + a.dtype.type(1) for n, a in expected.items()}
    got["cache_k_index"] = np.array([[[0, 1, 0], [0, 0, 0]]], np.int32)
    forced = forced_entries(spec, case, got)
    assert not forced["cache_k_index"].any()
    assert forced["cache_k_user"][0, :, :, 0].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_decode_is_given_no_more_than_its_window():
    """An engine may have been built for no more entries."""
    spec, entries = make_spec("sim", window=5), np.arange(18).reshape(1, 1, 9, 2)
    found = kept(spec, {"cache_k_user": entries, "cache_k_index": entries[..., 0]})
    np.testing.assert_array_equal(found["cache_k_user"], entries[:, :, 5:])
    np.testing.assert_array_equal(found["cache_k_index"], entries[:, :, 5:, 0])


def test_served_scores_show_what_forcing_hides(exported: Exported):
    """One row of the cache flips: the gate excuses it, and the report says what it cost."""
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def flip(arrays) -> None:
        arrays["cache_k_index"] = (arrays["cache_k_index"] + 1) % 10

    close = [
        dataclasses.replace(
            c, margins={n: np.full_like(m, EXPLAINED_MARGIN / 2) for n, m in c.margins.items()}
        )
        for c in made.cases
    ]
    outcome = judge(made.spec, Tampered(prefill, outputs=flip), decode, close)
    assert outcome.passed
    report = routing_report(outcome.runs)
    allowed = TOLERANCES["score"].absolute
    assert report.forced.max < allowed < report.served.max
    untouched = judge(made.spec, prefill, decode, made.cases)
    assert all(run.served is None for run in untouched.runs), "nothing flipped: one run is enough"


@pytest.mark.parametrize("beyond", ["first behind the last", "last before the first"])
def test_rows_beyond_the_pool_are_not_served(beyond: str, exported: Exported):
    made = exported("sim")
    prefill, decode = made.torch_runners()
    row = made.spec.attention.pool_rows("k") if beyond.startswith("first") else -1

    def change(arrays) -> None:
        arrays["cache_k_index"][:, :, -1:] = row

    outcome = judge(made.spec, Tampered(prefill, outputs=change), decode, made.cases[:8])
    assert outcome.first_failure.tensor == "cache_k_index"
    assert all(run.served is None for run in outcome.runs)
