"""What a worker does and what is settled before any is started, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ckv_testing.filling import filled, records
from ckv_testing.histories import some_users, write_parquet
from ckv_testing.serving import Shop

from ckv_export.bulk import on_ray
from ckv_export.bulk.fill import Filler, FillOptions
from ckv_export.bulk.on_ray import Worker, fill_on_ray
from ckv_export.errors import EventsError, MissingDependency

pa = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_worker_fills_the_groups_it_is_given_once(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop, events = shops("items"), tmp_path / "h.parquet"
    users, store = some_users(shop, 9, rng), f"sqlite:///{tmp_path / 'u.db'}"
    write_parquet(events, shop, users, rows=3)
    options = FillOptions(shop.folder, events, store, user_dtype="float32", threads=1)
    finding = Filler(options)
    worker = Worker(options, finding.job)
    batches = [worker({"id": np.array(ids)}) for ids in ([1, 2], [2], [0])]
    assert [b["users"].tolist() for b in batches] == [[3, 3], [3], [3]]
    assert [b["skipped"].tolist() for b in batches] == [[0, 0], [3], [0]]
    first = filled(shop, events, f"sqlite:///{tmp_path / 'straight.db'}")
    assert sum(b["written"].sum() for b in batches) == first.written
    assert filled(shop, events, store).skipped == 9, "known as done to every other run"
    assert records(shop, store, users) == records(
        shop, f"sqlite:///{tmp_path / 'straight.db'}", users
    )


def test_a_user_twice_is_refused_before_anything_is_started(
    shops: Callable[[str], Shop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(on_ray, "_module", lambda: SimpleNamespace())
    table = pa.table({"user_id": ["a", "a"], "event_item_id": [[1], [2]]})
    parquet.write_table(table, tmp_path / "h.parquet")
    store = f"sqlite:///{tmp_path / 'u.db'}"
    options = FillOptions(shops("items").folder, tmp_path / "h.parquet", store)
    with pytest.raises(EventsError, match="two histories of user 'a'"):
        fill_on_ray(options, 2, lambda total, users: None)


@pytest.mark.parametrize(("address", "given"), [("", {"num_cpus": 4}), ("ray://head:10001", {})])
def test_a_cluster_that_is_named_is_joined(
    address: str, given: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """Of one made here, a processor feeds the workers."""
    seen: dict[str, object] = {}
    monkeypatch.setenv("RAY_ADDRESS", address)
    on_ray._start(SimpleNamespace(init=lambda **how: seen.update(how)), workers=3)  # type: ignore[arg-type]
    assert seen == {"log_to_driver": False, "include_dashboard": False} | given


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch):
    def failing(name: str) -> None:
        raise ImportError(name=name)

    monkeypatch.setattr(on_ray.importlib, "import_module", failing)
    with pytest.raises(MissingDependency, match=r"pip install .*ray"):
        on_ray._module()
