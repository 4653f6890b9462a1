"""Shops: a bundle to serve from, users with true histories, and what the reference says of them."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckv_export.cache.record import RecordLayout, decode
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import EventForm, FeatureSpec, ModelSpec, Profile
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.prepare import FormRequest
from ckv_export.manifest import Manifest, open_bundle
from ckv_export.model.reference import Entries, Reference
from ckv_export.model.registry import build_reference
from ckv_export.parity.tolerances import EXPLAINED_MARGIN
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.stages import Stages
from ckv_testing.draw import PLAIN, draw_state, exact, make_spec
from ckv_testing.exports import Export, one_thread
from ckv_testing.hstu import SPEC as HSTU
from ckv_testing.hstu import hstu_state

AGE = FeatureSpec("age", "user", "categorical", 3, vocab_size=6)
ITEMS = make_spec("eta", features=(AGE, *PLAIN), window=5, max_len=12)
PLAIN_ITEMS = make_spec("sim", features=PLAIN[:1])
_SEED = 11


@dataclass
class User:
    """What a user truly did: arrays [n, ..] by item feature, and the features of the request."""

    events: dict[str, Array]
    features: dict[str, Array]

    @property
    def count(self) -> int:
        return len(next(iter(self.events.values())))


@dataclass
class Shop:
    """A published bundle, and the reference model that it came from."""

    form: str
    spec: ModelSpec
    state: Mapping[str, Tensor]
    folder: Path
    manifest: Manifest
    reference: Reference
    items: dict[str, Array] = field(default_factory=dict)

    def draw(self, count: int, rng: np.random.Generator, after: int = 0) -> dict[str, Array]:
        """`count` events or candidates: [count, ..] by item feature; times rise from `after`."""
        drawn: dict[str, Array] = {}
        for f in self.spec.item_features:
            drawn[f.name] = _draw(f, count, rng)
            if f.kind == "timestamp":
                gaps = rng.integers(0, 5000, count)
                drawn[f.name] = (after + gaps.cumsum()).astype(np.int32)
        for name, values in self.items.items():
            drawn[name] = values[drawn["item_id"]]
        return drawn

    def user(self, events: int, rng: np.random.Generator) -> User:
        """A user with a history of so many events; rounding may decide a row of theirs."""
        features = {f.name: _draw(f, 1, rng)[0] for f in self.spec.user_features}
        return User(self.draw(events, rng), features)

    def next(self, user: User, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """`count` events that the user may do next, without a close call."""
        while True:
            events = self.draw(count, rng, self.last(user))
            if count == 0 or self._clear(user, {n: a[None] for n, a in events.items()}):
                return events

    def offer(self, user: User, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """`count` candidates for the user, without a close call."""
        while True:
            offered = self.draw(count, rng, self.last(user))
            if self._clear(user, {n: a[:, None] for n, a in offered.items()}):
                return offered

    def _clear(self, user: User, new: Mapping[str, Array]) -> bool:
        """Whether rounding decides no row of `new` [B, n, ..], each put behind what the user did.

        After one that it does, all later layers are another's. Other models see no history, and
        are drawn with rows that are exact.
        """
        if not self.spec.layers_see_history:
            return True
        users, count = next(iter(new.values())).shape[:2]
        joined = {
            n: np.concatenate([np.repeat(a[None], users, 0), new[n]], axis=1)
            for n, a in user.events.items()
        }
        layers = _entries(self.reference, joined)
        margins = [m[:, -count:] for one in layers for m in one.margin.values() if m is not None]
        return all(bool((margin > EXPLAINED_MARGIN).all()) for margin in margins)

    def grow(self, user: User, events: Mapping[str, Array]) -> None:
        """Let the user do `events`."""
        user.events = {n: np.concatenate([a, events[n]]) for n, a in user.events.items()}

    def last(self, user: User) -> int:
        """When the user last did something; 0 where time is no feature."""
        stamp = self.spec.timestamp
        return int(user.events[stamp.name][-1]) if stamp and user.count else 0

    def given(self, prefix: str, values: Mapping[str, Array]) -> Arrays:
        """Those of `values` that the bundle's graphs take, under their names."""
        taken = [f.name for f in self.spec.item_features if self.manifest.form.gives(f)]
        return {f"{prefix}_{name}": values[name] for name in taken}

    def inputs(
        self, user: User, events: Mapping[str, Array], candidates: Mapping[str, Array]
    ) -> Arrays:
        """A request's inputs."""
        features = {f"user_{n}": np.asarray(v) for n, v in user.features.items()}
        return self.given("append", events) | self.given("candidate", candidates) | features

    def scores(self, user: User, candidates: Mapping[str, Array]) -> Array:
        """What the reference says [C], the history as long as in training for windowed models."""
        length = self.spec.max_len if self.spec.window is not None else user.count
        history = {n: _left_padded(a, length) for n, a in user.events.items()}
        mask = np.arange(length) >= length - user.count
        with torch.inference_mode():
            score = self.reference.score(
                _tensors(history),
                torch.from_numpy(mask[None]),
                _tensors(candidates),
                _tensors(user.features),
            )
        return score[0].numpy()


def _entries(reference: Reference, events: Mapping[str, Array]) -> list[Entries]:
    """What the reference caches of `events` [B, n, ..], all of them real."""
    given = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in events.items()}
    with torch.inference_mode():
        return reference.cache(given, torch.ones(*next(iter(events.values())).shape[:2]).bool())


def cached(shop: Shop, events: Mapping[str, Array]) -> dict[str, Array]:
    """What the reference caches of one user's `events`: [L, n, ..] by decode's inputs."""
    layers = _entries(shop.reference, {n: a[None] for n, a in events.items()})
    made: dict[str, Array] = {}
    for tensor in shop.manifest.graph("decode").inputs:
        group, _, what = tensor.name.partition("_")
        if group == "cache":
            side, kind = what.split("_")
            made[tensor.name] = np.stack([getattr(one, kind)[side][0].numpy() for one in layers])
    return made


def check_record(shop: Shop, user: User, layout: RecordLayout, record: bytes) -> None:
    """What the record holds is what the reference makes of all that the user truly did."""
    stored, made = decode(layout, record), cached(shop, user.events)
    for name, array in stored.items():
        if name.startswith("history_"):
            wanted = user.events[name.removeprefix("history_")]
            np.testing.assert_array_equal(array, wanted[len(wanted) - len(array) :], name)
            continue
        wanted = made[name][:, user.count - array.shape[1] :]
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def exported_shop(made: Export, folder: Path, max_len: int = 9) -> Shop:
    """One of the session's exports."""
    spec = dataclasses.replace(made.spec, max_len=max_len)
    prefill, _ = made.graphs()
    bundle = _bundle(spec, made.folder, folder, prefill.padding())
    return _shop(spec.kind, spec, made.state, bundle)


def hstu_shop(graphs: Path, folder: Path) -> Shop:
    """The session's HSTU: two layers, times."""
    spec = dataclasses.replace(HSTU, max_len=120)
    return _shop("hstu", spec, hstu_state(HSTU), _bundle(spec, graphs, folder))


def _items() -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Weights and catalogue of `ITEMS`."""
    rng = np.random.default_rng(_SEED)
    return draw_state(ITEMS, rng), _catalogue(ITEMS, rng)


def items_shop(folder: Path) -> Shop:
    """An ETA with an item table; `folder`: where `export_items` has put it."""
    state, items = _items()
    return dataclasses.replace(_shop("items", ITEMS, state, folder / "items"), items=items)


def export_items(folder: Path) -> None:
    """Its bundle, from a real export."""
    state, items = _items()
    np.savez(folder / "items.npz", item_id=np.arange(len(items["cate_id"])), **items)
    form = FormRequest(item_features=folder / "items.npz", item_table=True)
    _export("items", ITEMS, state, folder, form)


def plain_shop(folder: Path) -> Shop:
    """A SIM whose items have an id alone; `folder`: where `export_plain` has put it."""
    return _shop("plain", PLAIN_ITEMS, _plain_state(), folder / "plain")


def export_plain(folder: Path) -> None:
    """Its bundle, from a real export."""
    _export("plain", PLAIN_ITEMS, _plain_state(), folder, FormRequest())


def _plain_state() -> dict[str, Tensor]:
    return draw_state(PLAIN_ITEMS, np.random.default_rng(_SEED))


def _export(
    name: str, spec: ModelSpec, state: Mapping[str, Tensor], folder: Path, form: FormRequest
) -> None:
    save_native(folder / "shop.pt", spec, state)
    request = ExportRequest(folder / "shop.pt", folder, name=name, form=form, parity=False)
    with one_thread():
        export_bundle(request, Stages(), None)  # type: ignore[arg-type]  # no engines


def _bundle(
    spec: ModelSpec, graphs: Path, folder: Path, padding: Mapping[str, list[float]] | None = None
) -> Path:
    """A bundle around graphs that are there; its own length limit stands in the manifest alone."""
    for name in ("prefill.onnx", "decode.onnx"):
        shutil.copyfile(graphs / name, folder / name)
    manifest = Manifest(
        name=f"shop-{spec.kind}",
        fingerprint=secrets.token_hex(32),
        model=spec,
        form=EventForm(),
        item_table=None,
        profile=Profile.default(spec),
        source={"kind": "native"},
        versions={},
        operators={},
        notes=(),
        timings={},
        parity=None,
        padding=padding or {},
    )
    manifest.with_files(folder).write(folder)
    return folder


def _shop(form: str, spec: ModelSpec, state: Mapping[str, Tensor], folder: Path) -> Shop:
    return Shop(form, spec, state, folder, open_bundle(folder), build_reference(spec, state))


def _catalogue(spec: ModelSpec, rng: np.random.Generator) -> dict[str, Array]:
    ids = next(f.vocab_size for f in spec.item_features if f.name == "item_id")
    others = (f for f in spec.embedded_item_features if f.name != "item_id")
    drawn = {f.name: _draw(f, ids, rng) for f in others}
    for values in drawn.values():
        values[0] = 0  # of padding, everything is 0
    return drawn


def _draw(feature: FeatureSpec, count: int, rng: np.random.Generator) -> Array:
    shape = (count, *feature.inner)
    if feature.dtype == "float32":
        return exact(rng.standard_normal(shape).astype(np.float32))
    return rng.integers(1, max(feature.vocab_size, 2), shape).astype(np.int32)


def _left_padded(values: Array, length: int) -> Array:
    kept = values[max(len(values) - length, 0) :]
    return np.concatenate([np.zeros((length - len(kept), *kept.shape[1:]), kept.dtype), kept])


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: torch.from_numpy(np.asarray(a)[None].copy()) for n, a in values.items()}
