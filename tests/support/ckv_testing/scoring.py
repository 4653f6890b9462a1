"""Scorers of a shop's bundle, and requests with the scores that they must have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ckv_export.cache.item_table import load_item_table
from ckv_export.contract import Range
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Arrays
from ckv_export.serving import Answer, Decode, Request, Scorer, ScorerOptions, in_process
from ckv_export.store import Store
from ckv_testing.serving import Shop, User

SCORE = 2 * TOLERANCES["score"].absolute
EXACT = ScorerOptions(user_dtype="float32")
DECODERS: dict[Path, Decode] = {}


def decoder(shop: Shop) -> Decode:
    if shop.folder not in DECODERS:
        graph = shop.manifest.graph_names[-1]
        table = load_item_table(shop.folder) if shop.manifest.item_table else None
        io = shop.manifest.graph(graph)
        DECODERS[shop.folder] = in_process(shop.folder / f"{graph}.onnx", io, table)
    return DECODERS[shop.folder]


def scorer(shop: Shop, store: Store, options: ScorerOptions = EXACT) -> Scorer:
    return Scorer(shop.manifest, store, decoder(shop), options)


def feeds_seen(served: Scorer) -> list[Arrays]:
    """What every decode call from now on is given."""
    decode, calls = served.decode, list[Arrays]()

    def seen(feeds: Arrays) -> Arrays:
        calls.append(feeds)
        return decode(feeds)

    served.decode = seen
    return calls


def with_profile(shop: Shop, **axes: Range) -> Shop:
    """The shop with a bundle exported for other sizes."""
    profile = shop.manifest.profile.replaced(shop.spec, axes)
    manifest = dataclasses.replace(shop.manifest, profile=profile)
    return dataclasses.replace(shop, manifest=manifest)


def ask(
    shop: Shop,
    user: User,
    rng: np.random.Generator,
    name: str = "u",
    appended: int = 0,
    candidates: int = 3,
) -> tuple[Request, np.ndarray]:
    """A request, and the scores that it must have; the user has done what it says."""
    events = shop.next(user, appended, rng)
    shop.grow(user, events)
    offered = shop.offer(user, candidates, rng)
    request = Request(name, shop.inputs(user, events, offered))
    return request, shop.scores(user, offered)


def check(answer: object, scores: np.ndarray, events: int) -> None:
    assert isinstance(answer, Answer), repr(answer)
    np.testing.assert_allclose(answer.scores, scores, rtol=0, atol=SCORE)
    assert answer.events == events
