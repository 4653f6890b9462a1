"""Whether a basis found on some users fits the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckv_export.cache.gram import Matrix, eigen

Floats = tuple[float, ...]


@dataclass(frozen=True)
class SharedBasis:
    """Energy of half B's events captured by a basis of `ranks` dimensions; ours.

    Half A: the users at even positions, half B at odd ones. `shared`: captured by the top r
    right singular vectors of A's events together. `own`: captured by each B user's own top r,
    energies summed over users; by Eckart and Young (1936) no r-dimensional basis does
    better, so it is an upper bound. `fraction`: shared / own, in [0, 1]. Where A's events span
    fewer than r dimensions, that span is used: no direction is counted that A did not show.
    """

    users_a: int
    users_b: int
    ranks: tuple[int, ...]
    shared: Floats
    own: Floats
    fraction: Floats


def shared_basis(gram_a: Matrix, gram_b: Matrix, own_b: Matrix, users: int) -> SharedBasis | None:
    """Measure half A's basis on half B; None where a half has no energy.

    `gram_a`, `gram_b`: X^T X [d, d] of each half's events. `own_b` [d]: for each r the
    r-th largest energy of every B user's own events, summed over those users.
    """
    energy_b = float(np.trace(gram_b))
    squares_a, basis = eigen(gram_a)
    if not (energy_b > 0 and squares_a.any()):
        return None
    # v^T G_B v is B's energy along v; directions that A's events don't span count nothing.
    along = np.einsum("ij,ij->j", basis, gram_b @ basis) * (squares_a > 0)
    ranks = powers_of_two(len(own_b))
    at = np.array(ranks) - 1
    shared = np.clip(np.cumsum(along)[at] / energy_b, 0.0, 1.0)
    own = np.clip(np.cumsum(own_b)[at] / energy_b, 0.0, 1.0)
    return SharedBasis(
        users_a=(users + 1) // 2,
        users_b=users // 2,
        ranks=ranks,
        shared=as_floats(shared),
        own=as_floats(own),
        fraction=as_floats(np.minimum(shared / own, 1.0)),
    )


def powers_of_two(d: int) -> tuple[int, ...]:
    """1, 2, 4, ... below d, then d itself; empty for d = 0."""
    return (*(2**n for n in range(d.bit_length()) if 2**n < d), d) if d else ()


def as_floats(values: Matrix) -> Floats:
    """Plain Python numbers, ready for JSON."""
    return tuple(float(v) for v in values)
