"""A FuxiCTR run folder, as the CollectiveKV training code leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ckv_export.checkpoint import names
from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.feature_map import read_features
from ckv_export.checkpoint.fuxi_dnn import import_dnn
from ckv_export.checkpoint.fuxi_features import import_features
from ckv_export.checkpoint.result import Checkpoint, naming
from ckv_export.checkpoint.run_folder import RunFolder, find_run
from ckv_export.checkpoint.tensors import conversion_notes, plain_tensors
from ckv_export.checkpoint.torch_file import read_torch_file
from ckv_export.checkpoint.transfer import Transfer
from ckv_export.contract import AttentionSpec, ModelSpec
from ckv_export.errors import CheckpointError
from ckv_export.model.parameters import check_state
from ckv_export.model.registry import MODELS

REDRAWN_HASHES = (
    "reuse_hash is false in this run: its training code draws new hash rotations at every "
    "forward, in evaluation too, so its scores of one request vary by up to 0.2; the rotations "
    "stored in the checkpoint are used here, and stay fixed"
)
UNSCALED_SDIM = (
    "use_scale is false in this SDIM run: it is applied to the short attention, as public "
    "FuxiCTR does; compare a few scores with the training code"
)


def load_run_folder(
    folder: Path, weights: str | None = None, params: str | None = None
) -> Checkpoint:
    """Read a FuxiCTR run folder; `find_run` tells what `weights` and `params` choose.

    Every tensor must be used or known as training-only, and every size must agree between
    weights, feature map and YAML. Raises `CheckpointError` otherwise.
    """
    with naming(folder):
        run = find_run(folder, weights, params)
        with naming(Path(run.weights.name)):
            stored = read_torch_file(run.weights)
            if not isinstance(stored, Mapping):
                raise CheckpointError(f"must hold a state dict, got {type(stored).__name__}")
            transfer = Transfer(plain_tensors(stored))
        spec, notes = _import(run, transfer)
    notes = (*notes, *conversion_notes(stored))
    files = (run.weights, run.feature_map, run.yaml)
    return Checkpoint(spec, transfer.tensors, run.experiment, "fuxictr", notes, files)


def _import(run: RunFolder, transfer: Transfer) -> tuple[ModelSpec, tuple[str, ...]]:
    """Move all tensors to native names; return the specification and notes."""
    kind, facts = _kind(transfer), run.params
    _refuse_baseline(transfer)
    _check_model_name(kind, facts)
    features = import_features(read_features(run.feature_map, facts), facts, transfer)
    attention = _attention(kind, facts, transfer)
    notes = _long_branch(kind, facts, transfer)
    spec = ModelSpec(
        kind=kind,
        features=features,
        attention=attention,
        dnn=import_dnn(facts, transfer),
        max_len=facts.need("max_len", int),
        window=facts.need("short_seq_len", int),
        mask_alignment="fuxictr",
        options={name: facts.need(name, of) for name, of in MODELS[kind].options.items()},
    )
    transfer.refuse_leftovers(names.TRAINING_ONLY)
    check_state(spec, transfer.tensors, transfer.origin)
    return spec, notes


def _kind(transfer: Transfer) -> str:
    for mark, kind in names.KIND_MARKS.items():
        if mark in transfer:
            return kind
    known = ", ".join(kind.upper() for kind in names.KIND_MARKS.values())
    raise CheckpointError(
        f"the weights are of no known model: {known} are, each told by one of the tensors "
        f"{', '.join(names.KIND_MARKS)}"
    )


def _refuse_baseline(transfer: Transfer) -> None:
    if not any(key in transfer for side in names.SHARED.values() for key in side):
        raise CheckpointError(
            "the weights hold no pool for K or V: this is a baseline model without CollectiveKV, "
            "and only CollectiveKV models can be exported"
        )


def _check_model_name(kind: str, facts: Facts) -> None:
    """Refuse a YAML that names another of the known models: it is that of another run."""
    given = str(facts.get("model")).lower()
    if given != kind and given in MODELS:
        facts.agree("model", kind.upper(), "the weights are of")
    if facts.get("gsu_type") not in (None, "soft"):
        raise CheckpointError(
            f"{facts.where}: gsu_type must be 'soft', got {facts.get('gsu_type')!r}"
        )


def _attention(kind: str, facts: Facts, transfer: Transfer) -> AttentionSpec:
    moved = {native: transfer.move(key, native, ndim=2) for key, native in names.ATTENTION.items()}
    d = moved["attention.0.q.weight"].shape[0]
    facts.agree("attention_dim", d, "the rows of short_attention.W_q.weight are")
    rows = {side: _pool_rows(side, transfer) for side in ("k", "v")}
    return AttentionSpec(
        d=d,
        num_heads=facts.need("num_heads", int),
        user_k=moved["attention.0.k.weight"].shape[0],
        user_v=moved["attention.0.v.weight"].shape[0],
        pool_rows_k=rows["k"],
        pool_rows_v=rows["v"],
        use_scale=_use_scale(kind, facts),
    )


def _use_scale(kind: str, facts: Facts) -> bool:
    """ETA and SDIM have the switch; in ETA it is for the long attention as well."""
    if kind == "eta":
        return facts.need("use_scale", bool)
    given = facts.optional("use_scale", bool) if kind == "sdim" else None
    return given is not False


def _pool_rows(side: str, transfer: Transfer) -> int:
    """Return M, the rows of the router; 0 for a side that has neither router nor pool."""
    keys = names.SHARED[side]
    if not any(key in transfer for key in keys):
        return 0
    router, _pool = [transfer.move(key, native, ndim=2) for key, native in keys.items()]
    return router.shape[0]


def _long_branch(kind: str, facts: Facts, transfer: Transfer) -> tuple[str, ...]:
    """Move the tensors of the long branch; return notes on it."""
    if "long_attention.W_c" in transfer:
        raise CheckpointError(
            "this TWIN model has cross features (Kc_cross_features above 0): "
            "models without them can be exported"
        )
    for key, native in names.LONG[kind].items():
        transfer.move(key, native)
    if "long.rotations" not in transfer.tensors:
        return ()
    _import_rotations(kind, facts, transfer)
    notes = [] if facts.need("reuse_hash", bool) else [REDRAWN_HASHES]
    if kind == "sdim" and not _use_scale(kind, facts):
        notes.append(UNSCALED_SDIM)
    return tuple(notes)


def _import_rotations(kind: str, facts: Facts, transfer: Transfer) -> None:
    """[1, d_e, bits] or [1, d_e, hashes, bits]: drop the leading 1, check sizes and powers."""
    key = "random_rotations"
    rotations = transfer.take(key, ndim=4 if kind == "sdim" else 3)
    if rotations.shape[0] != 1:
        raise CheckpointError(f"tensor {key!r} must start with an axis of 1")
    transfer.put("long.rotations", rotations[0], key)
    bits = rotations.shape[-1]
    facts.agree("hash_bits", bits, f"the last axis of {key!r} is")
    if kind == "sdim":
        facts.agree("num_hashes", rotations.shape[-2], f"the hashes of {key!r} are")
        powers = transfer.take("powers_of_two", ndim=1)
        if not torch.equal(powers, 2.0 ** torch.arange(bits)):
            raise CheckpointError(
                f"tensor 'powers_of_two' must be 2^0 to 2^{bits - 1}, got {powers.tolist()[:8]}"
            )
