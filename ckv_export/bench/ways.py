"""Ways to serve a request: a runtime, what it keeps of a user, and calls for each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ckv_export.bench.environment import resident_bytes
from ckv_export.bench.pinned import landed
from ckv_export.bench.stored import Layout, Store
from ckv_export.bench.workload import Request
from ckv_export.contract import ModelSpec
from ckv_export.errors import CkvError, InputError
from ckv_export.runtimes.base import Array, Arrays, Feeds, Runner

PHASES = ("prefill", "append", "transfer", "decode", "request")
"""Events to entries; the newest events in, one candidate; decode's inputs to the GPU alone, where a
way runs on one; all candidates, inputs ready as arrays; the whole request: stored bytes to scores.
"""

Cache = Literal["compact", "full, held", "full, fetched", "none"]
"""What is kept of a user: the compact cache, fetched; whole K and V that lie ready where the way
runs; whole K and V, fetched; nothing, so that every request runs prefill."""


@dataclass(frozen=True)
class Origin:
    """Whose files a way runs, empty for weights of a checkpoint.

    `bundle`: its name; `precision`: of its graphs' large products; `pool_step`: who computes it in
    the decode engine, None where that isn't an engine or doesn't say.
    """

    bundle: str = ""
    precision: str = "fp32"
    pool_step: str | None = None


@dataclass
class Way:
    """A runtime's graphs with what they keep of a user.

    `decode` takes the cache tensors of `layout`; `full`: turns compact entries into them, None
    where they are the compact ones; `lands`: the device that copies stored bytes from pinned memory
    by itself, None where they become arrays of the host first; `settles`: calls of one shape until
    every later one does what the last of them did.
    """

    name: str
    cache: Cache
    prefill: Runner | None
    decode: Runner
    layout: Layout
    full: Callable[[Mapping[str, Array]], Arrays] | None = None
    origin: Origin = Origin()
    lands: str | None = None
    settles: int = 1
    load_seconds: float = 0.0
    first_call_seconds: float = 0.0
    host_bytes: int | None = None
    runners: list[Runner] = field(default_factory=list)

    def open(self) -> None:
        """Load the graphs; raises `CkvError` where this machine can't."""
        before, start = resident_bytes(), time.perf_counter()
        for runner in (self.prefill, self.decode):
            if runner is not None and not runner.active:
                runner.activate()
                self.runners.append(runner)
        self.load_seconds = time.perf_counter() - start
        after = resident_bytes()
        if before is not None and after is not None:
            self.host_bytes = max(after - before, 0)

    def close(self, others: Sequence[Way] = ()) -> None:
        """Free the graphs that it has loaded; what one of `others` runs too becomes that one's."""
        while self.runners:
            runner = self.runners.pop()
            heir = next((way for way in others if runner in (way.prefill, way.decode)), None)
            if heir is None:
                runner.deactivate()
            else:
                heir.runners.append(runner)

    def kept(self, compact: Mapping[str, Array]) -> Arrays:
        """What this way keeps of users whose compact entries are these."""
        return self.full(compact) if self.full is not None else dict(compact)

    def store_of(
        self, compact: Mapping[str, Array], real: Sequence[int], store: StoreMaker
    ) -> Store:
        """The users' bytes, padding left out."""
        kept = self.kept(compact)
        events = next(iter(kept.values())).shape[2]
        blobs = []
        for user, count in enumerate(real):
            part = slice(events - min(count, events), events)
            real_part = {name: array[:, :, part] for name, array in kept.items()}
            blobs.append(self.layout.pack(real_part, user))
        return store(self, blobs)


StoreMaker = Callable[[Way, Sequence[bytes]], Store]


@dataclass
class Prepared:
    """One request ready to be served by a way, and the calls of its phases."""

    way: Way
    spec: ModelSpec
    request: Request
    cache: Feeds
    store: Store | None

    @property
    def lands(self) -> bool:
        """Whether stored bytes go to the device without becoming arrays of the host."""
        return self.way.lands is not None and self.store is not None and self.store.lands

    def score(self) -> Array:
        """The whole request: stored bytes -> arrays -> runtime -> scores [B, C]."""
        way, request = self.way, self.request
        cache = self._prefilled() if way.cache == "none" else self._fetched()
        return way.decode.infer(request.decode_feeds(way.decode.io, cache))["score"]

    def _fetched(self) -> Feeds:
        if self.store is None:
            return self.cache
        layout, users = self.way.layout, range(self.request.sizes.batch)
        events = self.spec.cached_events(self.request.sizes.history)
        if self.lands:
            assert self.way.lands is not None
            return landed(layout, self.store.fetch(users), events, self.way.lands)
        return self.store.unpack(layout, users, events)

    def _prefilled(self) -> Arrays:
        assert self.way.prefill is not None
        feeds = self.request.prefill_feeds(self.way.prefill.io, self.spec)
        return last_entries(self.spec, self.way.prefill.infer(feeds))

    def calls(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Each phase that is this way's own."""
        way, decode, prefill = self.way, self.way.decode, self.way.prefill
        if prefill is not None and way.cache == "compact":
            feeds = self.request.prefill_feeds(prefill.io, self.spec)
            yield "prefill", lambda: prefill.infer(feeds)
        if way.cache in ("compact", "full, held"):
            alone = self.request.without_scoring()
            appended = alone.decode_feeds(decode.io, self.cache)
            scored = self.request.decode_feeds(decode.io, self.cache)
            yield "append", lambda: decode.infer(appended)
            yield "decode", lambda: decode.infer(scored)
        if decode.metadata().device != "cpu" and way.cache != "none":
            yield "transfer", self._transfer()
        yield "request", self.score

    def _transfer(self) -> Callable[[], object]:
        """A call that sends decode's inputs to the device, and nothing else."""
        decode, request, ready = self.way.decode, self.request, self._fetched()
        if self.lands:
            return lambda: decode.upload(request.decode_feeds(decode.io, self._fetched()))
        feeds = request.decode_feeds(decode.io, ready)
        return lambda: decode.upload(feeds)


def last_entries(spec: ModelSpec, cache: Mapping[str, Array]) -> Arrays:
    """Of entries ``cache_*`` [B, L, S, ...], those of the last K events, which decode takes."""
    events = next(iter(cache.values())).shape[2]
    first = events - spec.cached_events(events)
    return {name: np.ascontiguousarray(array[:, :, first:]) for name, array in cache.items()}


@dataclass(frozen=True)
class LeftOut:
    """A way that can't run here, and why."""

    name: str
    reason: str


def require_named(text: str, ways: Sequence[Way], left_out: Sequence[LeftOut]) -> None:
    """Raise `InputError` unless `text` is part of the name of one of `ways`."""
    if any(text in way.name for way in ways):
        return
    for way in left_out:
        if text in way.name:
            raise InputError(
                f"--only {text!r} is for {way.name!r}, which is left out here: {way.reason}"
            )
    there = ", ".join(repr(way.name) for way in ways)
    raise InputError(f"--only must be part of the name of a way ({there}), got {text!r}")


def open_all(ways: Sequence[Way]) -> tuple[list[Way], list[LeftOut]]:
    """Load every way; those that fail are closed again and said why."""
    opened, left_out = [], []
    for way in ways:
        try:
            way.open()
        except CkvError as error:
            way.close()
            left_out.append(LeftOut(way.name, str(error)))
        else:
            opened.append(way)
    return opened, left_out


def failure(prepared: Sequence[Prepared]) -> dict[str, str]:
    """A way's name and why it can't serve one of these, as an engine not built for its shape."""
    try:
        for one in prepared:
            for _ in range(one.way.settles):
                one.score()
    except CkvError as error:
        return {prepared[0].way.name: str(error)}
    return {}
