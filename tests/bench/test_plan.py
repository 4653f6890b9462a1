"""The planner's arithmetic, by hand."""

from __future__ import annotations

import pytest
from ckv_testing.draw import make_spec

from ckv_export.bench.plan import (
    Demand,
    Measured,
    measured_ways,
    not_counted,
    plans,
    whole_number,
)
from ckv_export.contract import AttentionSpec
from ckv_export.errors import InputError

# 2 + 2 bytes of row numbers and 4 + 4 of fp16 user parts an event; pools of 2 * 4 * 10000 * 254.
SPEC = make_spec("sim", attention=AttentionSpec(256, 8, 2, 2, 10_000, 10_000), window=1001)
POOLS = 20_320_000


def test_a_billion_users_to_the_byte():
    demand = Demand(10**9, 1000, 123_457, memory=512 * 10**9, link=12_500_000_000)
    compact, fp16, fp32 = plans(SPEC, demand)
    assert compact.value("bytes per event") == 12
    assert compact.value("bytes per user") == 12_000
    assert compact.value("all users") == 12_000_000_000_000
    assert compact.value("users per GB") == 83_333
    beside = not_counted(SPEC, demand)
    assert beside is not None
    assert "4.00 kB a user" in beside  # 1000 ids of 4 bytes
    assert compact.value("servers for memory") == -(-12 * 10**12 // (512 * 10**9 - POOLS))
    assert compact.value("fetched per second") == 123_457 * 12_000
    assert compact.value("links") == 1
    assert fp16.value("bytes per user") == 1000 * 2 * 256 * 2
    assert fp32.value("all users") == 10**9 * 2_048_000
    assert fp32.value("servers for memory") == 4000
    assert fp32.value("links") == -(-123_457 * 2_048_000 // 12_500_000_000)


def test_a_window_caps_what_is_cached_and_a_partial_server_is_a_server():
    demand = Demand(3, 5000, 1, memory=POOLS + 2 * 12_000)
    compact, *_ = plans(SPEC, demand)
    assert compact.value("cached events per user") == 1000
    assert compact.value("servers for memory") == 2
    assert plans(SPEC, Demand(3, 0, 1))[0].value("all users") == 0


def test_processors_follow_from_measured_requests():
    measured = [
        Measured("a", "cpu", "compact", 25_000),
        Measured("b", "NVIDIA X", "compact", 100),
        Measured("c", "cpu", "none", 1_000_000),
        Measured("d", "cpu", "full, fetched", 1),
    ]
    compact, fp16, _ = plans(SPEC, Demand(1, 1000, 1000, utilisation=60), measured)
    assert compact.value("cores: a") == 42  # 25 busy cores / 0.6 = 41.67
    assert compact.value("GPUs: b") == 1
    assert compact.value("cores: c") == 1667
    assert fp16.value("cores: d") == 1


def test_the_arithmetic_is_shown():
    (compact, *_) = plans(SPEC, Demand(10, 1000, 7))
    shown = {line.what: line.how for line in compact.lines}
    assert shown["all users"] == "10 users x 12,000"
    assert "2 K index uint16" in shown["bytes per event"]


@pytest.mark.parametrize(("text", "number"), [("1e9", 10**9), ("12.5e9", 12_500_000_000), ("7", 7)])
def test_whole_numbers_are_read_exactly(text: str, number: int):
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["1.5", "many", "", "nan", "inf", "1e19", "1e99999"])
def test_other_texts_are_refused(text: str):
    with pytest.raises(InputError, match="a whole number is written like"):
        whole_number(text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"users": 0}, "users must lie in 1 to 1,000,000,000, got 0"),
        ({"users": 10**9 + 1}, "users must lie"),
        ({"history": -1}, "history must lie"),
        ({"utilisation": 101}, "utilisation must lie in 1 to 100"),
    ],
)
def test_impossible_demands_are_refused(changes: dict, says: str):
    with pytest.raises(InputError, match=says):
        Demand(**{"users": 1, "history": 1, "requests": 1} | changes)


def test_a_server_that_holds_no_user_is_refused():
    with pytest.raises(InputError, match=r"holds no user beside pools of 20\.3 MB"):
        plans(SPEC, Demand(1, 1000, 1, memory=POOLS + 1))


def test_a_result_for_other_histories_says_nothing():
    result = {"settings": {"sizes": {"history": 100, "batch": 2}}, "ways": []}
    with pytest.raises(InputError, match="measure with --history 1000"):
        measured_ways(result, 1000)
    way = {"name": "a", "device": "cpu", "cache": "compact"}
    result["ways"] = [way | {"phases": {"request": {"mean_ms": 3.0}}}, way | {"phases": {}}]
    assert measured_ways(result, 100) == [Measured("a", "cpu", "compact", 1500)]
