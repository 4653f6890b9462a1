"""How many dimensions K and V really use, and how much of that all users share.

The paper (arXiv 2601.19178) argues from a singular value decomposition: the principal part
of users' K and V, most of the energy, is alike across users, the residual is a user's own.
It compares users by correlation. The held-out test here is ours: a basis found on one
half of the users is measured on the other half, so "shared" means "predicts users never
seen". Nothing is centred: attention uses K and V as they are, mean included.

A trained pool need not look low-rank: its rows are stored once, whatever they span. What
these numbers bound is a different scheme, one linear basis for all users.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.gram import Matrix, eigen, energies, gram, users_of
from ckv_export.cache.shared import Floats, SharedBasis, as_floats, shared_basis
from ckv_export.errors import EventsError, InputError

Events = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the events of all users, stacked: X [events, d], not centred.

    `energy`: s_r^2 / sum s^2; `cumulative`: its running sum, zeros if X is zero. `rank_90`,
    `rank_95`, `rank_99`: fewest dimensions with that share of the energy. `effective_rank`:
    exp(-sum p ln p) with p = `energy`, a variant of Roy and Vetterli (EUSIPCO 2007), who
    take p = s_r / sum s: that is `effective_rank_rv`, and never smaller. Both are 0 if X is.
    `pool_energy`: share of the energy in the first `pool_width` = d_g columns, the pool's
    part of the vector; the user part holds the rest. None without a pool. Ours.
    `shared`: None where a half of the users has no events, such as with a single user.
    """

    side: str
    layer: int
    users: int
    events: int
    d: int
    pool_width: int | None
    singular_values: Floats
    energy: Floats
    cumulative: Floats
    rank_90: int
    rank_95: int
    rank_99: int
    effective_rank: float
    effective_rank_rv: float
    pool_energy: float | None
    shared: SharedBasis | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


class SpectrumStream:
    """Collects one side and layer user by user; holds d x d sums, never the events.

    A user's vectors are those the attention uses: concat(pool row, user part), after silu
    where the model has it. Users alternate between the halves A and B in the order added,
    also those without events.
    """

    def __init__(
        self, d: int, *, side: str = "k", layer: int = 0, pool_width: int | None = None
    ) -> None:
        if pool_width is not None and not 0 <= pool_width <= d:
            raise InputError(f"pool_width must lie in [0, {d}], got {pool_width}")
        self.d, self.side, self.layer, self.pool_width = d, side, layer, pool_width
        self._users = self._events = 0
        self._gram_a, self._gram_b = np.zeros((d, d)), np.zeros((d, d))
        self._own_b = np.zeros(d)

    def add(self, user: Events) -> None:
        """Add one user's events [n, d], n >= 0; `EventsError` on another shape or NaN."""
        if user.ndim != 2 or user.shape[1] != self.d:
            raise EventsError(
                f"{self.side.upper()} of user {self._users} must have shape [n, {self.d}], "
                f"got {list(user.shape)}"
            )
        its_gram = gram(user)
        if self._users % 2 == 0:
            self._gram_a += its_gram
        else:
            self._gram_b += its_gram
            self._own_b += energies(user, its_gram)
        self._users += 1
        self._events += len(user)

    def add_batch(self, users: Events, mask: NDArray[np.bool_] | None = None) -> None:
        """Add B users: vectors [B, S, d] and mask [B, S], true where an event is real."""
        if users.ndim != 3:
            raise EventsError(f"vectors must have shape [B, S, d], got {list(users.shape)}")
        for user in users_of(users, mask):
            self.add(user)

    def result(self) -> Spectrum:
        """Return the spectrum of everything added so far."""
        whole = self._gram_a + self._gram_b
        squares = eigen(whole)[0]
        share = _shares(squares)
        cumulative = np.minimum(np.cumsum(share), 1.0)
        return Spectrum(
            side=self.side,
            layer=self.layer,
            users=self._users,
            events=self._events,
            d=self.d,
            pool_width=self.pool_width,
            singular_values=as_floats(np.sqrt(squares)),
            energy=as_floats(share),
            cumulative=as_floats(cumulative),
            rank_90=_rank(cumulative, 0.90),
            rank_95=_rank(cumulative, 0.95),
            rank_99=_rank(cumulative, 0.99),
            effective_rank=_exp_entropy(share),
            effective_rank_rv=_exp_entropy(_shares(np.sqrt(squares))),
            pool_energy=_pool_energy(whole, self.pool_width),
            shared=shared_basis(self._gram_a, self._gram_b, self._own_b, self._users),
        )


def kv_spectrum(
    users: Events | Iterable[Events],
    mask: NDArray[np.bool_] | None = None,
    *,
    side: str = "k",
    layer: int = 0,
    pool_width: int | None = None,
) -> Spectrum:
    """Spectrum of one side and layer.

    `users`: [B, S, d] with `mask` [B, S], or any iterable of [n_i, d], read once. Raises
    `EventsError` on a wrong shape, on NaN, and on an empty iterable, whose d is unknown.
    """
    options: dict[str, Any] = {"side": side, "layer": layer, "pool_width": pool_width}
    if isinstance(users, np.ndarray):
        stream = SpectrumStream(users.shape[-1] if users.ndim else 0, **options)
        stream.add_batch(users, mask)
        return stream.result()
    each = iter(users)
    first = next(each, None)
    if first is None:
        raise EventsError("there are no users to analyse")
    stream = SpectrumStream(first.shape[-1] if first.ndim else 0, **options)
    for user in itertools.chain([first], each):
        stream.add(user)
    return stream.result()


def _shares(values: Matrix) -> Matrix:
    total = float(values.sum())
    return values / total if total > 0 else np.zeros_like(values)


def _rank(cumulative: Matrix, share: float) -> int:
    """Fewest dimensions that hold `share` (up to rounding); 0 for a zero matrix."""
    if not cumulative.any():
        return 0
    return int(np.searchsorted(cumulative, share - 1e-12)) + 1


def _exp_entropy(shares: Matrix) -> float:
    used = shares[shares > 0]
    return float(np.exp(-np.sum(used * np.log(used)))) if used.size else 0.0


def _pool_energy(whole: Matrix, pool_width: int | None) -> float | None:
    if pool_width is None:
        return None
    columns = _shares(np.diag(whole))
    return float(columns[:pool_width].sum())
