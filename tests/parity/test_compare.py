"""What counts as equal: numbers within a bound, rows exactly but for excused ones."""

from __future__ import annotations

import numpy as np
import pytest

from ckv_export.contract import PRECISIONS
from ckv_export.parity.compare import TensorResult, compare_rows, compare_values
from ckv_export.parity.tolerances import (
    EXPLAINED_MARGIN,
    ROUNDOFF,
    TOLERANCES,
    Tolerance,
    entry_tolerances,
    routing_of,
    tolerance_of,
)

BOUND = Tolerance(0.5, 0.25, "for these tests")


def values(got, expected, counted=None, bound=BOUND) -> TensorResult:
    arrays = (np.asarray(x, np.float32) for x in (got, expected))
    return compare_values("case", "score", *arrays, [bound], counted)


def test_equal_numbers_pass_with_no_error():
    result = values([[1.0, -2.0]], [[1.0, -2.0]])
    assert result.passed
    assert (result.error, result.elements) == (0.0, 2)
    assert result.worst_margin is None


def test_bound_is_absolute_plus_relative():
    """Of 1: 0.5 + 0.25; the tensor's largest number is 1, so nothing scales."""
    assert values([1.75], [1.0]).passed
    assert values([0.25], [1.0]).passed
    assert not values([1.7501], [1.0]).passed
    assert not values([0.2499], [1.0]).passed
    assert values([0.5], [0.0]).passed
    assert not values([0.5001], [0.0]).passed


def test_absolute_bound_scales_with_the_largest_number_of_the_tensor():
    """8 is there: 0.5 * 8 + 0.25 * 0 for the other element."""
    assert values([4.0, 8.0], [0.0, 8.0]).passed
    assert not values([4.01, 8.0], [0.0, 8.0]).passed
    assert not values([0.51, 0.1], [0.0, 0.1]).passed, "but never below 1"


def test_the_mean_error_is_of_the_largest_number():
    assert values([0.5, 8.0], [0.0, 8.0]).mean == pytest.approx(0.25 / 8)
    assert values([0.5, 0.1], [0.0, 0.1]).mean == pytest.approx(0.25)


def test_worst_element_is_the_one_farthest_beyond_its_own_bound():
    result = values(
        [[0.0, 0.6], [9.0, 0.0]], [[0.0, 0.0], [8.0, 0.0]], bound=Tolerance(0.01, 0.25, "")
    )
    assert not result.passed
    assert result.where == (0, 1)
    assert result.error == pytest.approx(0.6)
    assert result.allowed == pytest.approx(0.08)
    assert result.sentence() == (
        "score of case 'case' is off by 0.6 at [0, 1] where 0.08 is allowed"
    )


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([np.nan, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [np.nan, 0.0]),
        ([np.nan, 0.0], [np.nan, 0.0]),
        ([np.inf, 0.0], [1.0, 0.0]),
        ([-np.inf, 0.0], [1.0, 0.0]),
    ],
)
def test_nan_and_infinity_never_pass(got: list[float], expected: list[float]):
    with np.errstate(invalid="ignore"):
        result = values(got, expected)
    assert not result.passed
    assert result.where == (0,)


@pytest.mark.parametrize("got", [[0.0, 0.0], [np.inf, 5.0], [-np.inf, 0.0]])
def test_infinite_reference_excuses_nothing(got: list[float]):
    with np.errstate(invalid="ignore"):
        assert not values(got, [np.inf, 0.0]).passed


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 1, 0, 4)])
def test_empty_tensors_pass(shape: tuple[int, ...]):
    result = values(np.zeros(shape), np.zeros(shape))
    assert result.passed
    assert (result.elements, result.error, result.where) == (0, 0.0, None)
    assert compare_rows("c", "k_index", *(np.zeros(shape, np.int32),) * 2, np.zeros(shape)).passed


def test_rows_left_out_do_not_count():
    got, expected = [[9.0, 0.0], [0.0, np.nan], [0.0, 0.0]], np.zeros((3, 2))
    assert not values(got, expected).passed
    result = values(got, expected, np.array([True, False, True]))
    assert not result.passed
    assert result.where == (1, 1), "no flip makes a NaN"
    got[1][1] = 8.0
    assert values(got, expected, np.array([False, False, True])).passed
    assert values(got, expected, np.zeros(3, bool)).passed
    result = values(got, expected, np.array([True, False, True]))
    assert not result.passed
    assert result.where == (0, 0)


@pytest.mark.parametrize("got", [np.zeros((2, 1), np.int32), np.zeros((2, 3))])
@pytest.mark.parametrize("compared", ["values", "rows"])
def test_other_shapes_and_types_are_no_match(compared: str, got: np.ndarray):
    expected = np.zeros((2, 3), np.int32)
    if compared == "values":
        result = compare_values("case", "score", got, expected, [BOUND])
    else:
        result = compare_rows("case", "score", got, expected, np.zeros((2, 3)))
    assert not result.passed
    assert result.sentence() == (
        f"score of case 'case' is {got.dtype} {list(got.shape)} where the reference has "
        "int32 [2, 3]"
    )
    assert result.to_dict()["error"] is None, "JSON knows no infinity"


def rows(got, expected, margin) -> TensorResult:
    arrays = (np.asarray(x, np.int32) for x in (got, expected))
    return compare_rows("case", "k_index", *arrays, np.asarray(margin, np.float32))


SMALL, LARGE = EXPLAINED_MARGIN / 2, EXPLAINED_MARGIN * 2


def test_equal_rows_pass_whatever_their_margin():
    result = rows([[1, 2]], [[1, 2]], [[0.0, np.nan]])
    assert result.passed
    assert (result.error, result.explained, result.where, result.worst_margin) == (0, 0, None, None)


def test_flip_below_the_margin_is_excused_and_counted():
    result = rows([[1, 9, 3]], [[1, 2, 3]], [[LARGE, SMALL, LARGE]])
    assert result.passed
    assert (result.error, result.explained, result.where) == (1.0, 1, (0, 1))
    assert result.worst_margin == pytest.approx(SMALL)


def test_flip_above_the_margin_fails_even_by_one_row():
    """Row 9998 for 9999 is as wrong as any: numbers near one another mean nothing here."""
    result = rows([[9998]], [[9999]], [[LARGE]])
    assert not result.passed
    assert (result.error, result.explained) == (1.0, 0)
    assert "k_index of case 'case' has 1 other row numbers of 1, first at [0, 0]" in (
        result.sentence()
    )
    assert "2e-05" in result.sentence()


def test_mixed_flips_fail_at_the_first_that_is_not_excused():
    result = rows([[0, 0, 0, 0]], [[1, 1, 0, 1]], [[SMALL, LARGE, LARGE, SMALL]])
    assert not result.passed
    assert (result.error, result.explained, result.where) == (3.0, 2, (0, 1))
    assert result.worst_margin == pytest.approx(LARGE)


@pytest.mark.parametrize("margin", [np.nan, np.inf, EXPLAINED_MARGIN * (1 + 1e-6)])
def test_margins_that_excuse_nothing(margin: float):
    assert not rows([1], [2], [margin]).passed


def test_tie_excuses_a_flip():
    """Two rows with equal logits: which one came out is the order of a sum."""
    assert rows([1], [2], [0.0]).passed


def test_results_are_plain_data():
    data = rows([1], [2], [LARGE]).to_dict()
    assert data["tensor"] == "k_index"
    assert set(data) == {"case", "tensor", "elements", "error", "allowed", "where", "explained",
                         "worst_margin", "passed", "mean"}  # fmt: skip


def test_every_tensor_has_its_row_in_the_table():
    reduced = ("score", "score, layered", "user, layered")
    halves = {f"{n}, {p}" for n in reduced for p in ("fp16", "bf16")}
    assert set(TOLERANCES) == {"score", "user", "user, layered"} | halves
    assert tolerance_of("score") == TOLERANCES["score"]
    for name in ("cache_k_user", "append_v_user"):
        assert tolerance_of(name) == TOLERANCES["user"]
        assert tolerance_of(name, 2).absolute == 2 * TOLERANCES["user, layered"].absolute
    assert all(len(t.reason) > 20 for t in TOLERANCES.values())


def test_bounds_grow_with_the_layers():
    one, three = tolerance_of("score"), tolerance_of("score", 3)
    assert three.absolute == pytest.approx(3 * one.absolute)
    assert tolerance_of("k_user", 2).relative == pytest.approx(2 * TOLERANCES["user"].relative)


@pytest.mark.parametrize(("name", "layers"), [("score", 1), ("score", 3), ("cache_k_user", 2)])
def test_bounds_of_half_precisions_are_their_roundoff_apart(name: str, layers: int):
    bounds = [tolerance_of(name, layers, p).absolute for p in PRECISIONS]
    assert PRECISIONS == ("fp32", "fp16", "bf16")
    assert bounds[0] < bounds[1] / 100
    assert bounds[2] == pytest.approx(8 * bounds[1]), "3 bits less"
    half = np.finfo(np.float16).eps / 2
    assert half < bounds[1] / layers < 100 * half, "several roundings, not hundreds"
    assert tolerance_of(name, layers, "fp16").typical == pytest.approx(layers * half)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (1.1, False)])
def test_score_of_a_half_precision_is_off_by_eight_roundings_at_most(
    precision: str, share: float, passed: bool
):
    """Eight of terms of size 4, times the sigmoid's slope; more only behind layers below."""
    bound = tolerance_of("score", 1, precision)
    assert "eight roundings" in bound.reason
    expected = np.full((2, 3), 1e-3, np.float32)
    got = expected.copy()
    got[1, 2] += np.float32(share * 8 * 4 * ROUNDOFF[precision] / 4)
    assert compare_values("c", "score", got, expected, [bound]).passed == passed
    assert 2 * bound.absolute < tolerance_of("score", 2, precision).absolute


def test_what_is_computed_in_fp32_anyway_is_judged_so():
    """The first layer's router and user parts: their input and products are fp32."""
    for precision in PRECISIONS:
        assert tolerance_of("cache_k_user", 1, precision) == TOLERANCES["user"]
        assert routing_of(0, precision).margin == EXPLAINED_MARGIN
    assert routing_of(1, "fp32").margin == EXPLAINED_MARGIN
    layered = [routing_of(2, p) for p in ("fp16", "bf16")]
    assert EXPLAINED_MARGIN < layered[0].margin < layered[1].margin
    assert all(r.most < 0.05 for r in layered), "or a wrong router would pass"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_user_parts_of_a_half_precision_are_bounded_by_layer(precision: str):
    bounds = entry_tolerances("cache_k_user", 3, precision)
    assert bounds[0] == tolerance_of("cache_k_user", 3)
    assert bounds[1:] == [tolerance_of("cache_k_user", 3, precision)] * 2
    expected = np.ones((1, 3, 2, 1))
    for layer, passed in ((0, False), (1, True), (2, True)):
        got = expected.copy()
        got[0, layer] += 1e-3
        result = compare_values("c", "cache_k_user", got, expected, bounds)
        assert result.passed == passed


def test_each_layer_has_a_margin_of_its_own():
    got, expected = np.array([[[1], [1]]]), np.array([[[2], [2]]])
    for margin, passed in (([0.5, 5.0], True), ([1.5, 5.0], False), ([0.5, 20.0], False)):
        margins = np.array(margin).reshape(1, 2, 1)
        result = compare_rows("c", "k_index", got, expected, margins, (1.0, 10.0))
        assert result.passed == passed
        if not passed:
            layer = int(margin[0] < 1.0)
            assert result.where == (0, layer, 0)
            assert result.needed == (1.0, 10.0)[layer]


def test_near_ties_of_the_selection_excuse_scores_but_not_nan():
    near = np.array([[True, True, False]])
    result = compare_values("c", "score", np.array([[9.0, 0.0, 0.0]]), np.zeros((1, 3)), [BOUND],
                            excusable=near)  # fmt: skip
    assert result.passed
    assert result.explained == 1
    for bad in ([[0.0, 0.0, 9.0]], [[np.nan, 0.0, 0.0]], [[0.0, np.inf, 0.0]]):
        result = compare_values(
            "c", "score", np.array(bad), np.zeros((1, 3)), [BOUND], excusable=near
        )
        assert not result.passed


def test_rows_that_are_not_counted_do_not_count():
    counted = np.array([[True, False]])
    arrays = (np.array([[1, 2]]), np.array([[1, 1]]), np.ones((1, 2)))
    assert not compare_rows("c", "k_index", *arrays).passed
    assert compare_rows("c", "k_index", *arrays, counted=counted).passed
