"""FuxiCTR features and their embedding tensors become `FeatureSpec`s and native tables."""

from __future__ import annotations

import torch

from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.names import ENCODERS, TABLES
from ckv_export.checkpoint.pretrained import folded_table
from ckv_export.checkpoint.tensors import identity
from ckv_export.checkpoint.transfer import Transfer
from ckv_export.contract import FeatureSpec
from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.shapes import shape_text

TYPES = ("categorical", "sequence", "numeric", "embedding")
POOLINGS = {
    None: "mean",
    "layers.MaskedAveragePooling()": "mean",
    "layers.MaskedSumPooling()": "sum",
}
IDENTITY = "nn.Identity()"


def import_features(
    features: dict[str, Facts], run: Facts, transfer: Transfer
) -> tuple[FeatureSpec, ...]:
    """Move the embedding tensors of `features` to native names; return the features, in order.

    Raises `CheckpointError` naming a feature whose type or encoder is unknown, whose tensor
    is missing or of another size than the feature map says, or if none is of source "item".
    """
    importer = _Importer(transfer, run)
    specs = tuple(importer.feature(name, facts) for name, facts in features.items())
    if not any(spec.role == "item" for spec in specs):
        raise CheckpointError(
            'no feature has the source "item": without one there are no events to attend to'
        )
    return specs


class _Importer:
    """Features in their order; `owners` are the earlier ones that hold a table."""

    def __init__(self, transfer: Transfer, run: Facts) -> None:
        self.transfer = transfer
        self.run = run
        self.owners: dict[str, FeatureSpec] = {}

    def feature(self, name: str, facts: Facts) -> FeatureSpec:
        kind = facts.need("type", str)
        role = "item" if facts.get("source") == "item" else "user"
        if kind in ("categorical", "sequence"):
            return self._ids(name, role, kind, facts)
        if kind == "numeric":
            return self._numeric(name, role, facts)
        if kind == "embedding":
            return self._vector(name, role, facts)
        raise CheckpointError(
            f"{facts.where}: type must be meta, {', '.join(TYPES)}, got {kind!r}"
            f"{nearest(kind, TYPES)}"
        )

    def _ids(self, name: str, role: str, kind: str, facts: Facts) -> FeatureSpec:
        length = facts.need("max_len", int) if kind == "sequence" else 0
        pooling = _pooling(facts) if kind == "sequence" else "mean"
        if kind == "categorical":
            _refuse_encoder(facts)
        # FuxiCTR shares only a table that stands earlier in the list; a feature naming a later
        # or absent one has a table of its own, whatever the map says
        owner = self.owners.get(facts.optional("share_embedding", str) or "")
        if owner:
            self._drop_copy(name, owner.name)
            rows, width = owner.vocab_size, owner.width
        else:
            rows, width = self._table(name, facts)
        spec = FeatureSpec(
            name, role, kind, width, rows, length, pooling, shares=owner.name if owner else None
        )
        self.owners[name] = owner or spec
        return spec

    def _table(self, name: str, facts: Facts) -> tuple[int, int]:
        prefix = f"{TABLES}{name}."
        native = f"embedding.{name}.table"
        if "pretrained_emb" in facts:
            table = folded_table(self.transfer, prefix, facts)
            self.transfer.put(native, table, prefix + "pretrain_embedding.weight")
        else:
            table = self.transfer.move(prefix + "weight", native, ndim=2)
        self._check_size(tuple(table.shape), facts)
        return table.shape[0], table.shape[1]

    def _check_size(self, shape: tuple[int, ...], facts: Facts) -> None:
        """Compare a table [vocab, width] with what the feature map says of it."""
        rows, width = shape
        vocab = facts.optional("vocab_size", int)
        widths = self._widths(facts)
        if vocab not in (None, rows) or (widths and width not in widths):
            allowed = " or ".join(str(w) for w in widths) or "any"
            raise CheckpointError(
                f"{facts.where} says vocab_size {vocab} and width {allowed}, but its table in the "
                f"checkpoint is {shape_text(shape)}; do these files belong together?"
            )

    def _widths(self, facts: Facts) -> list[int]:
        """Widths that the map allows: the feature's own or the run's, and after its encoder."""
        own = facts.optional("embedding_dim", int) or self.run.optional("embedding_dim", int)
        return [w for w in (own, facts.optional("emb_output_dim", int)) if w is not None]

    def _drop_copy(self, name: str, owner: str) -> None:
        """FuxiCTR stores a shared table once more under the name of each sharing feature."""
        for part in self.transfer.under(f"{TABLES}{name}."):
            copy = self.transfer.take(f"{TABLES}{name}.{part}")
            table = self.transfer.take(f"{TABLES}{owner}.{part}")
            if identity(copy) != identity(table) and not torch.equal(copy, table):
                raise CheckpointError(
                    f"feature {name!r} shares the embedding of {owner!r}, but the checkpoint "
                    "holds two different tables for them"
                )

    def _numeric(self, name: str, role: str, facts: Facts) -> FeatureSpec:
        _refuse_encoder(facts)
        key = f"{TABLES}{name}.weight"
        column = self.transfer.move(key, f"embedding.{name}.weight", ndim=2)
        self._check_width(column.shape[0], facts)
        return FeatureSpec(name, role, "numeric", column.shape[0])

    def _vector(self, name: str, role: str, facts: Facts) -> FeatureSpec:
        encoder = _encoder(facts)
        if encoder == IDENTITY:
            widths = self._widths(facts)
            if not widths:
                self.run.need("embedding_dim", int)
            # what follows the encoder counts, and the identity has no shape to tell it
            return FeatureSpec(name, role, "vector", widths[-1], length=widths[-1])
        if encoder is not None:
            raise CheckpointError(_encoder_message(facts, encoder, IDENTITY))
        key = f"{ENCODERS}{name}.weight"
        matrix = self.transfer.move(key, f"embedding.{name}.weight", ndim=2)
        width, length = matrix.shape
        self._check_width(width, facts)
        facts.agree("pretrain_dim", length, f"the columns of tensor {key!r} are")
        return FeatureSpec(name, role, "vector", width, length=length, projected=True)

    def _check_width(self, width: int, facts: Facts) -> None:
        widths = self._widths(facts)
        if widths and width not in widths:
            raise CheckpointError(
                f"{facts.where} says width {' or '.join(map(str, widths))}, but its weight in the "
                f"checkpoint has {width} rows; do these files belong together?"
            )


def _encoder(facts: Facts) -> str | None:
    """Return the encoder; FuxiCTR also takes a list of them, to be applied in turn."""
    encoder = facts.get("feature_encoder")
    if isinstance(encoder, list) and len(encoder) == 1:
        encoder = encoder[0]
    return None if encoder is None else str(encoder).replace(" ", "")


def _pooling(facts: Facts) -> str:
    encoder = _encoder(facts)
    if encoder not in POOLINGS:
        known = " or ".join(name for name in POOLINGS if name)
        raise CheckpointError(_encoder_message(facts, encoder, known))
    return POOLINGS[encoder]


def _refuse_encoder(facts: Facts) -> None:
    encoder = _encoder(facts)
    if encoder not in (None, IDENTITY):
        raise CheckpointError(_encoder_message(facts, encoder, "none"))


def _encoder_message(facts: Facts, encoder: str | None, known: str) -> str:
    return (
        f"{facts.where}: feature_encoder must be {known} for the type "
        f"{facts.get('type')!r}, got {encoder!r}"
    )
