"""The planner's arithmetic, by hand."""

from __future__ import annotations

import pytest
from ckv_testing.draw import DNN, PLAIN, make_spec
from ckv_testing.records import ITEM, MANIFESTS, manifest

from ckv_export.bench.plan import (
    Demand,
    Measured,
    measured_ways,
    not_counted,
    plans,
    whole_number,
)
from ckv_export.contract import AttentionSpec, ModelSpec
from ckv_export.errors import InputError
from ckv_export.manifest import Manifest

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
    assert compact.value("servers for memory") == -(-12 * 10**12 // (512 * 10**9 - POOLS))
    assert compact.value("fetched per second") == 123_457 * 12_000
    assert compact.value("links") == 1
    assert fp16.value("bytes per user") == 1000 * 2 * 256 * 2
    assert fp32.value("all users") == 10**9 * 2_048_000
    assert fp32.value("servers for memory") == 4000
    assert fp32.value("links") == -(-123_457 * 2_048_000 // 12_500_000_000)


@pytest.mark.parametrize(
    ("bundle", "beside"),
    [
        (
            manifest(ITEM),
            ", and with any cache and without one history item_id: 4.00 kB a user.",
        ),
        (
            MANIFESTS["two ids"],
            ", and with any cache and without one history item_id, history cate_id: 8.00 kB a "
            "user, or item_id alone: 4.00 kB.",
        ),
        (MANIFESTS["HSTU"], "."),
        (
            MANIFESTS["HSTU with time"],
            ", and with any cache and without one history time: 4.00 kB a user.",
        ),
        (
            MANIFESTS["item table"],
            ", and with any cache and without one history item_id: 4.00 kB a user. With the "
            "bundle's item table no cache is kept, the history alone.",
        ),
    ],
)
def test_what_is_kept_beside_a_cache_is_said(bundle: Manifest, beside: str):
    """1000 numbers of 4 bytes each."""
    said = not_counted(bundle, Demand(1, 1000, 1))
    assert said == f"Not counted: a record's header of 64 bytes{beside}"


def test_a_window_caps_what_is_cached_and_a_partial_server_is_a_server():
    demand = Demand(3, 5000, 1, memory=POOLS + 2 * 12_000)
    compact, *_ = plans(SPEC, demand)
    assert compact.value("cached events per user") == 1000
    assert compact.value("servers for memory") == 2


def test_a_user_lies_whole_on_one_server():
    """Room for nearly two is room for one: three users don't share two servers."""
    (least, *_) = plans(SPEC, Demand(3, 1000, 1, memory=POOLS + 12_000))
    assert least.value("users per server") == 1
    demand = Demand(3, 1000, 1, memory=POOLS + 2 * 12_000 - 1)
    compact, fp16, _ = plans(SPEC, demand)
    assert (compact.value("users per server"), compact.value("servers for memory")) == (1, 3)
    assert (fp16.value("users per server"), fp16.value("servers for memory")) == (19, 1)


def test_users_without_events_cost_nothing():
    for plan in plans(SPEC, Demand(10**9, 0, 7)):
        numbers = {line.what: line.value for line in plan.lines}
        assert numbers.pop("bytes per event") > 0
        assert set(numbers.values()) == {0}
        assert "servers for memory" in numbers
        assert "users per GB" not in numbers  # nor divided by


def test_processors_follow_from_measured_requests():
    measured = [
        Measured("a", "cpu", "compact", 25_000_000),
        Measured("b", "NVIDIA X", "compact", 1_000_000, threads=4),
        Measured("c", "cpu", "none", 1_000_000_000),
        Measured("d", "cpu", "full, fetched", 1_000, stored="fp16"),
        Measured("e", "cpu", "compact", 25_000_000, threads=3),
        Measured("f", "cpu", "full, fetched", 2_000),
        Measured("g", "cpu", "full, held", 2_000),
    ]
    compact, fp16, fp32 = plans(SPEC, Demand(1, 1000, 1000, utilisation=60), measured)
    assert compact.value("cores: a") == 42  # 25 busy cores / 0.6 = 41.67
    assert compact.value("GPUs: b") == 2  # threads of the host are not GPUs
    hows = {line.what: line.how for line in compact.lines}
    assert ("threads" in hows["GPUs: b"], "x 3 threads" in hows["cores: e"]) == (False, True)
    assert compact.value("cores: c") == 1667
    assert compact.value("cores: e") == 125  # each call keeps three cores
    assert fp16.value("cores: d") == 1
    planned = [[x.what for x in p.lines if ": " in x.what] for p in (compact, fp16, fp32)]
    assert planned[0] == ["cores: a", "GPUs: b", "cores: c", "cores: e"]
    assert planned[1:] == [["cores: d"], ["cores: f"]]


def test_the_arithmetic_is_shown():
    (compact, *_) = plans(SPEC, Demand(10, 5000, 7))
    assert {line.what: (line.how, line.text) for line in compact.lines} == {
        "cached events per user": ("of 5,000 events of history", "1,000"),
        "bytes per event": (
            "(2 K index uint16 + 2 V index uint16 + 4 K user part fp16 + 4 V user part fp16)",
            "12 B",
        ),
        "bytes per user": ("1,000 events x 12", "12.0 kB"),
        "users per GB": ("1,000,000,000 / 12,000, rounded down", "83,333"),
        "all users": ("10 users x 12,000", "120 kB"),
        "users per server": (
            "(512,000,000,000 less 20,320,000 of pools) / 12,000, rounded down",
            "42,664,973",
        ),
        "servers for memory": ("10 users / 42,664,973, rounded up", "1"),
        "fetched per second": ("7 requests x 12,000", "84.0 kB/s"),
        "links": ("84,000 / 12,500,000,000 a second, rounded up", "1"),
    }
    way = Measured("a", "cpu", "compact", 1_500_000, threads=2, stored="fp16")
    (compact, *_) = plans(SPEC, Demand(10, 1000, 7, utilisation=50), [way])
    assert compact.lines[-1].how == (
        "7 requests x 1,500,000 ns x 2 threads / (1,000,000,000 ns x 50%), rounded up"
    )


@pytest.mark.parametrize("user_dtype", ["fp32", "fp16", "int8"])
def test_times_from_records_of_another_dtype_are_said_to_be(user_dtype: str):
    """Bytes are those of `user_dtype`, the times those of what was stored when they were taken."""
    ways = [Measured(c, "cpu", c, 1_000) for c in ("compact", "none", "full, fetched")]
    compact, _, fp32 = plans(SPEC, Demand(1, 1000, 1, user_dtype), ways)
    fetched, without = (line.how for line in compact.lines[-2:])
    assert ("measured with user parts in fp32" in fetched) == (user_dtype != "fp32")
    assert "measured" not in without  # fetches no record
    assert "measured" not in fp32.lines[-1].how


def test_every_layer_is_counted_and_every_pool():
    """By hand: two layers of row numbers of 2 and 4 bytes, int8 user parts and their scales."""
    spec = ModelSpec(
        kind="hstu",
        features=PLAIN,
        attention=AttentionSpec(256, 8, 2, 3, 100, 70_000),
        dnn=DNN,
        max_len=40,
        num_layers=2,
    )
    compact, fp16, _ = plans(spec, Demand(7, 2000, 5, user_dtype="int8", memory=10**9))
    each = 2 * ((2 + 4) + (2 + 2) + (3 + 2))
    assert compact.lines[1].how.startswith("2 layers x (2 K index uint16 + ")
    assert compact.value("bytes per event") == each
    assert compact.value("cached events per user") == 2000  # no window
    assert compact.value("fetched per second") == 5 * 2000 * each
    pools = 2 * 4 * (100 * 254 + 70_000 * 253)
    assert compact.value("users per server") == (10**9 - pools) // (2000 * each)
    assert fp16.lines[1].how == "2 layers x 1024 K and V, full fp16"
    assert fp16.value("bytes per event") == 2 * 2 * 256 * 2
    assert fp16.value("users per server") == 10**9 // (2000 * 2 * 2 * 256 * 2)


@pytest.mark.parametrize(
    ("text", "number"), [("1e9", 10**9), ("12.5e9", 12_500_000_000), ("7", 7), ("1e18", 10**18)]
)
def test_whole_numbers_are_read_exactly(text: str, number: int):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["1.5", "many", "", "nan", "inf", "1e19", "1e99999", "1e9999999", "-1e9999999", "1e-9999999"],
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(InputError, match="a whole number is written like"):
        whole_number(text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"users": 0}, "users must lie in 1 to 1,000,000,000, got 0"),
        ({"users": 10**9 + 1}, "users must lie"),
        ({"history": -1}, "history must lie in 0 to 10,000,000, got -1"),
        ({"requests": 0}, "requests must lie in 1 to 1,000,000,000,000, got 0"),
        ({"memory": 0}, "memory must lie"),
        ({"link": 0}, "link must lie"),
        ({"utilisation": 0}, "utilisation must lie"),
        ({"utilisation": 101}, "utilisation must lie in 1 to 100"),
    ],
)
def test_impossible_demands_are_refused(changes: dict, says: str):
    with pytest.raises(InputError, match=says):
        Demand(**{"users": 1, "history": 1, "requests": 1} | changes)


@pytest.mark.parametrize(("history", "memory"), [(1000, POOLS + 11_999), (0, POOLS)])
def test_a_server_that_holds_no_user_is_refused(history: int, memory: int):
    with pytest.raises(InputError, match=r"holds no user beside pools of 20\.3 MB"):
        plans(SPEC, Demand(1, history, 1, memory=memory))


def test_a_result_for_other_histories_says_nothing():
    result = {"settings": {"sizes": {"history": 100, "batch": 2}}, "ways": []}
    result["settings"] |= {"threads": 4, "stored": "fp16"}
    with pytest.raises(InputError, match="measure with --history 1000"):
        measured_ways(result, 1000)
    way = {"name": "a", "device": "cpu", "cache": "compact"}
    result["ways"] = [
        way | {"phases": {"request": {"mean_ms": 3.0}}},
        way | {"phases": {"decode": {"mean_ms": 1.0}}},
    ]
    assert measured_ways(result, 100) == [Measured("a", "cpu", "compact", 1_500_000, 4, "fp16")]


def test_requests_of_large_batches_cost_less_than_a_microsecond_each_and_not_nothing():
    timing = {"request": {"mean_ms": 1.0}}
    way = {"name": "a", "device": "NVIDIA X", "cache": "compact", "phases": timing}
    settings = {"sizes": {"history": 1000, "batch": 4096}, "threads": 1, "stored": "fp32"}
    (measured,) = measured_ways({"settings": settings, "ways": [way]}, 1000)
    assert measured.nanoseconds == 244
    way["phases"] = {"request": {"mean_ms": 1e-4}}
    (least,) = measured_ways({"settings": settings, "ways": [way]}, 1000)
    assert least.nanoseconds == 1
    compact, *_ = plans(SPEC, Demand(1, 1000, 10**7, utilisation=100), [measured])
    assert compact.value("GPUs: a") == 3  # 10 million x 244 ns are 2.44 busy seconds a second
