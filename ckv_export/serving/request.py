"""One user's request, and what must be right about it before it shares a call with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ckv_export.contract import TensorSpec
from ckv_export.errors import InputError, nearest
from ckv_export.manifest import Manifest
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.store.entry import TOKEN_BYTES

_KINDS = {"int32": "iu", "float32": "fiu"}


@dataclass(frozen=True)
class Request:
    """Append what the user just did, then score candidates.

    `inputs`, without a batch axis: ``candidate_<f>`` [C, ..], ``user_<f>`` [..] and, T new events,
    oldest first, ``append_<f>`` [T, ..]; without any the last may be missing. `token`: name of the
    append (`store.token_of`); one of a name that the user's record has seen is not made again.
    """

    user: str
    inputs: Mapping[str, Array]
    token: bytes | None = None

    @property
    def appended(self) -> int:
        """T."""
        return next((len(a) for n, a in self.inputs.items() if n.startswith("append_")), 0)

    def without_events(self) -> Request:
        """The same request with T = 0."""
        inputs = {n: a[:0] if n.startswith("append_") else a for n, a in self.inputs.items()}
        return Request(self.user, inputs)


def request_tensors(manifest: Manifest, graph: str) -> tuple[TensorSpec, ...]:
    """The inputs that a request to a bundle's decode graph has, without the batch axis."""
    wanted = ("append_", "candidate_", "user_")
    return tuple(
        TensorSpec(t.name, t.dtype, t.axes[1:])
        for t in manifest.graph(graph).inputs
        if t.name.startswith(wanted) and t.name != "append_mask"
    )


class RequestCheck:
    """The limits of a request's inputs.

    `tensors`: those of `request_tensors`, by name. Ids must lie in their tables: what a graph reads
    for another is not defined, and other users are in the same call. `longest`: events of a
    history, the new ones included, that a score takes into account.
    """

    def __init__(self, manifest: Manifest, graph: str, longest: int) -> None:
        self.tensors = {t.name: t for t in request_tensors(manifest, graph)}
        self.most = {
            "T": min(manifest.profile.axes["T"].max, longest),
            "C": manifest.profile.axes["C"].max,
        }
        self._rows = {f.name: f.vocab_size for f in manifest.model.features if f.has_table}

    def __call__(self, request: Request) -> Request:
        """The request with every input in its dtype, empty ``append_*`` where it had none.

        Raises `InputError`.
        """
        _check_names(request)
        for name in request.inputs:
            if name not in self.tensors:
                raise InputError(
                    f"a request of this model has no input {name!r}{nearest(name, self.tensors)}"
                )
        sizes: dict[str, int] = {}
        appends = any(name.startswith("append_") for name in request.inputs)
        inputs: Arrays = {}
        for tensor in self.tensors.values():
            if tensor.name.startswith("append_") and not appends:
                inputs[tensor.name] = np.zeros(tensor.shape({"T": 0}), tensor.dtype)
            else:
                inputs[tensor.name] = self._input(tensor, request.inputs, sizes)
        return Request(request.user, inputs, request.token)

    def _input(
        self, tensor: TensorSpec, given: Mapping[str, Array], sizes: dict[str, int]
    ) -> Array:
        if tensor.name not in given:
            raise InputError(f"the input {tensor.name!r} is missing")
        array = np.asarray(given[tensor.name])
        self._check_shape(tensor, array, sizes)
        if array.dtype.kind not in _KINDS[tensor.dtype]:
            raise InputError(f"the input {tensor.name!r} must be {tensor.dtype}, got {array.dtype}")
        self._check_values(tensor, array)
        return array.astype(tensor.dtype, copy=False)

    def _check_shape(self, tensor: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
        fits = array.ndim == len(tensor.axes)
        for axis, size in zip(tensor.axes, array.shape, strict=False):
            fits = fits and size == (
                sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            )
        if not fits:
            shape = [sizes.get(a, a) if isinstance(a, str) else a for a in tensor.axes]
            raise InputError(
                f"the input {tensor.name!r} must have the shape {shape} of one user, "
                f"got {list(array.shape)}"
            )
        for axis, most in self.most.items():
            if sizes.get(axis, 0) > most:
                what = {"T": "events are appended", "C": "candidates are scored"}[axis]
                raise InputError(f"at most {most} {what} in one request, got {sizes[axis]}")

    def _check_values(self, tensor: TensorSpec, array: Array) -> None:
        if not array.size:
            return
        if tensor.dtype == "float32":
            with np.errstate(over="ignore"):
                if not np.isfinite(array.astype(np.float32)).all():
                    raise InputError(
                        f"the input {tensor.name!r} holds NaN or numbers too large for float32"
                    )
            return
        rows = self._rows.get(tensor.name.split("_", 1)[1])
        low, end = (-(2**31), 2**31) if rows is None else (0, rows)
        least, most = int(array.min()), int(array.max())
        if least < low or most >= end:
            raise InputError(
                f"the input {tensor.name!r} must lie in [{low}, {end}), "
                f"got {least if least < low else most}"
            )


def _check_names(request: Request) -> None:
    """Of user and append, as a store takes them."""
    user, token = request.user, request.token
    if not isinstance(user, str):
        raise InputError(f"a request must name its user by a text, got {user!r}")
    if not user:
        raise InputError("a request must name its user, got an empty user id")
    try:
        user.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a user's id must be text in UTF-8: {error}") from error
    if token is not None and not (isinstance(token, bytes) and len(token) == TOKEN_BYTES):
        raise InputError(
            f"a request's token must be the {TOKEN_BYTES} bytes of token_of(), got {token!r}"
        )
