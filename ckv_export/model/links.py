"""How HSTU's new events see those before them, themselves and one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class New:
    """Which of Q new events are candidates: None, or all but the `appended` first, C of them.

    Candidates stand at one position and see the same N events, and each itself; so in R rows by
    event the last is that of every candidate. Without candidates R is Q.
    """

    appended: int
    candidates: int | None

    def each(self, rows: Tensor) -> Tensor:
        """[B, R, N] -> [B, Q, N], the last row for every candidate."""
        if self.candidates is None:
            return rows
        of_candidates = rows[:, self.appended :].expand(-1, self.candidates, -1)
        return torch.cat([rows[:, : self.appended], of_candidates], dim=1)

    def beside_candidates(self, by_event: Tensor, by_candidate: Tensor) -> Tensor:
        """[B, Q, N] and what holds between the new and the candidates [Q, C] -> [B, Q, N + C]."""
        if self.candidates is None:
            return by_event
        beside = by_candidate.to(by_event.dtype).expand(by_event.shape[0], -1, self.candidates)
        return torch.cat([by_event, beside], dim=2)

    def themselves(self, device: torch.device) -> Tensor:
        """Where a new event is a candidate: bool [Q, C], made on `device`."""
        count = self.candidates or 0
        candidates = torch.arange(count, device=device) + self.appended
        return torch.arange(self.appended + count, device=device)[:, None] == candidates


@dataclass(frozen=True)
class Links:
    """How Q new events see the N before them and among them, and C candidates.

    visible int32 0 or 1 [B, Q, N + C]; distance int32 [B, R, N], positions back, 0 where invisible;
    bucket int32 [B, Q, N], log2 bucket of the seconds between (None without timestamps); count
    float [B, Q], the real events up to each new one, at least 1.
    """

    new: New
    visible: Tensor
    distance: Tensor
    bucket: Tensor | None
    count: Tensor


def log2_bucket(seconds: Tensor) -> Tensor:
    """floor(log2(max(seconds, 1))) of int32 seconds, as int32.

    No runtime's logarithm is trusted at a power of two: that of a whole number below 2**12 raised
    by a half is never nearer than 1e-4 to a whole one. Larger numbers are cut down to that first,
    before fp32 could round them up.
    """
    few = seconds.clamp(min=1)
    large, huge = few >= 2**12, few >= 2**24
    upper = (few - few % 2**12).to(torch.float32) * 2.0**-12
    cut = torch.where(large, upper, few.to(torch.float32))
    cut = torch.where(huge, torch.floor(upper * 2.0**-12), cut)
    digits = torch.floor(torch.log2(cut + 0.5)).to(torch.int32)
    return digits + 12 * (large.to(torch.int32) + huge.to(torch.int32))
