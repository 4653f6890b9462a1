"""Small FuxiCTR run folders with random weights, to be bent in one place by each test.

The names and sizes are written from SPEC section 3, not with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

D, USER, ROWS, BITS, HASHES, WIDTH = 8, 2, 10, 4, 3, 4
TABLES = "embedding_layer.embedding_layer.embedding_layers."
ENCODERS = "embedding_layer.embedding_layer.feature_encoders."
PARAMS: dict[str, Any] = {
    "dataset_id": "toy",
    "embedding_dim": WIDTH,
    "num_heads": 2,
    "short_seq_len": 5,
    "max_len": 12,
    "attention_dim": D,
    "dnn_activations": "relu",
    "dnn_hidden_units": [6, 5],
    "net_dropout": 0.1,
    "batch_norm": True,
    "task": "binary_classification",
}
KIND_PARAMS: dict[str, dict[str, Any]] = {
    "sim": {"topk": 3, "gsu_type": "soft"},
    "eta": {"topk": 3, "use_scale": True, "reuse_hash": True, "hash_bits": BITS},
    "sdim": {"l2_norm": True, "reuse_hash": True, "hash_bits": BITS, "num_hashes": HASHES},
    "twin": {"topk": 3},
}


class Dice(nn.Module):
    """The activation of that name, with FuxiCTR's tensor names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-9)
        self.alpha = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.bn(x))
        return gate * x + self.alpha * (1 - gate) * x


@dataclass
class Run:
    """A run folder to be; change `features`, `params`, `state`, then `write`."""

    folder: Path
    features: dict[str, dict[str, Any]]
    params: dict[str, Any]
    state: dict[str, Tensor]
    labels: tuple[str, ...] = ("click",)
    experiment: str = "toy_run"

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        torch.save(self.state, self.folder / f"{self.experiment}.model")
        data = {
            "dataset_id": "toy",
            "labels": list(self.labels),
            "features": [{name: spec} for name, spec in self.features.items()],
        }
        (self.folder / "feature_map.json").write_text(json.dumps(data))
        self.write_yaml({self.experiment: self.params})
        return self.folder

    def write_yaml(self, sections: dict[str, Any], name: str = "model_config.yaml") -> None:
        (self.folder / name).write_text(yaml.safe_dump(sections))


def categorical(vocab: int, source: str = "", **more: Any) -> dict[str, Any]:
    spec = {"type": "categorical", "source": source, "vocab_size": vocab, "padding_idx": 0}
    return spec | more


def sequence(vocab: int, length: int, source: str = "", **more: Any) -> dict[str, Any]:
    return categorical(vocab, source, max_len=length) | {"type": "sequence"} | more


def table(vocab: int, width: int = WIDTH) -> Tensor:
    return torch.cat([torch.zeros(1, width), torch.randn(vocab - 1, width)])


def short_attention(d_event: int, shared: str = "kv") -> dict[str, Tensor]:
    """The tensors of the CollectiveKV attention; `shared` lists the sides with a pool."""
    state = {"W_q.weight": torch.randn(D, d_event), "W_o.weight": torch.randn(d_event, D)}
    for side in "kv":
        rows = USER if side in shared else D
        state[f"W_{side}.weight"] = torch.randn(rows, d_event)
        if side in shared:
            state[f"router_{side.upper()}.weight"] = torch.randn(ROWS, d_event)
            state[f"global_{side.upper()}_pool"] = torch.randn(ROWS, D - USER)
    return {f"short_attention.{name}": tensor for name, tensor in state.items()}


def long_branch(kind: str, d_event: int) -> dict[str, Tensor]:
    middle = "h" if kind == "twin" else "k"
    attention = {
        f"long_attention.W_{part}.weight": torch.randn(D, d_event) for part in ("q", middle, "v")
    } | {"long_attention.W_o.weight": torch.randn(d_event, D)}
    if kind == "sim":
        search = {f"W_{part}.weight": torch.randn(D, d_event) for part in "ab"}
        return search | attention | {"dnn_aux.mlp.0.weight": torch.randn(1, 3)}
    if kind == "eta":
        return {"random_rotations": torch.randn(1, d_event, BITS)} | attention
    if kind == "sdim":
        rotations = torch.randn(1, d_event, HASHES, BITS)
        return {"random_rotations": rotations, "powers_of_two": 2.0 ** torch.arange(BITS)}
    return attention


def mlp(
    width: int,
    hidden: tuple[int, ...] = (6, 5),
    activations: tuple[Callable[[int], nn.Module | None], ...] | None = None,
    dropout: tuple[float, ...] = (0.1, 0.1),
    batch_norm: bool = True,
) -> nn.Sequential:
    """FuxiCTR's list of modules, with statistics as after some training."""
    made = activations or tuple(lambda _: nn.ReLU() for _ in hidden)
    modules: list[nn.Module] = []
    for rows, make, rate in zip(hidden, made, dropout, strict=True):
        modules.append(nn.Linear(width, rows))
        modules += [nn.BatchNorm1d(rows)] if batch_norm else []
        activation = make(rows)
        modules += [activation] if activation is not None else []
        modules += [nn.Dropout(rate)] if rate > 0 else []
        width = rows
    result = nn.Sequential(*modules, nn.Linear(width, 1), nn.Sigmoid())
    for name, buffer in result.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return result.eval()


def mlp_state(network: nn.Sequential) -> dict[str, Tensor]:
    return {f"dnn.mlp.{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a factory of runs: two item features, one of the user, all three categorical."""

    def make(kind: str = "sim", shared: str = "kv") -> Run:
        torch.manual_seed(0)
        features = {
            "user_index": {"type": "meta"},
            "item_id": categorical(20, "item"),
            "age": categorical(7),
            "cate_id": categorical(9, "item"),
        }
        state = {
            f"{TABLES}{name}.weight": table(spec["vocab_size"])
            for name, spec in features.items()
            if spec["type"] != "meta"
        }
        d_event = 2 * WIDTH
        state |= short_attention(d_event, shared) | long_branch(kind, d_event)
        state |= mlp_state(mlp(WIDTH + 3 * d_event))
        params = PARAMS | {"model": kind.upper()} | KIND_PARAMS[kind]
        return Run(tmp_path / "run", features, params, state)

    return make


@pytest.fixture
def fuxi() -> Any:
    """Return the helpers above: test modules can't import this file by name."""

    class Helpers:
        pass

    for helper in (categorical, sequence, table, short_attention, mlp, mlp_state, Dice):
        setattr(Helpers, helper.__name__, staticmethod(helper))
    Helpers.TABLES, Helpers.ENCODERS, Helpers.WIDTH = TABLES, ENCODERS, WIDTH
    return Helpers
