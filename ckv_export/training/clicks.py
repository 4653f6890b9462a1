"""Labelled candidates after histories, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FeatureTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Clicks:
    """N histories with C candidates each.

    history: feature -> [N, S, ...], left-padded, 0 where `mask` [N, S] is false; candidates:
    feature -> [N, C, ...]; user: feature -> [N, ...]; label float32 [N, C], 1 for a click.
    """

    history: FeatureTensors
    mask: Tensor
    candidates: FeatureTensors
    user: FeatureTensors
    label: Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]

    def take(self, rows: Tensor | slice) -> Clicks:
        """The histories at `rows`, with their candidates."""
        history, candidates, user = (
            {name: tensor[rows] for name, tensor in group.items()}
            for group in (self.history, self.candidates, self.user)
        )
        return Clicks(history, self.mask[rows], candidates, user, self.label[rows])

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Clicks]:
        """All of them in pieces of `size`, the last one smaller; in `order` int64 [N] if given."""
        order = torch.arange(len(self)) if order is None else order
        return (self.take(rows) for rows in order.split(size))

    def save(self, path: Path) -> None:
        """Write one .npz under the graphs' names; an existing file is overwritten.

        ``event_<f>`` [N, S, ...], ``event_mask`` [N, S], ``candidate_<f>`` [N, C, ...],
        ``user_<f>`` [N, ...] and ``label`` [N, C]. Raises `OSError`.
        """
        groups = {"event": self.history, "candidate": self.candidates, "user": self.user}
        tensors = {"event_mask": self.mask, "label": self.label}
        for prefix, group in groups.items():
            tensors |= {f"{prefix}_{name}": tensor for name, tensor in group.items()}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        with path.open("wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # no option is named so


@dataclass(frozen=True)
class ClickData:
    """What a model learns from, and what it is judged by."""

    train: Clicks
    held_out: Clicks
