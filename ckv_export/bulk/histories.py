"""Files of users' histories, read a piece at a time.

A row is a user: its id in one column, and a list of values in each ``event_<f>``, oldest first, as
long as the user's history. ``event_mask`` may say which of them are real; without it all are.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.arrays import read_arrays, take
from ckv_export.contract import TensorSpec
from ckv_export.errors import EventsError, MissingDependency, nearest, reason
from ckv_export.manifest import FileEntry, Manifest
from ckv_export.runtimes.base import Array, Arrays

PIECE = 4096
"""Users in memory at once."""
_MASK = TensorSpec("event_mask", "bool", ("N",))


@dataclass(frozen=True)
class Piece:
    """Some users: ``event_<f>`` [N, ..] of all their real events, and how many each has."""

    users: Sequence[str]
    lengths: NDArray[np.int64]
    values: Arrays

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return self.lengths.cumsum()

    def history(self, position: int, most: int) -> Arrays:
        """The last `most` events of one of them."""
        end = int(self._ends[position])
        start = end - min(int(self.lengths[position]), most)
        return {name: array[start:end] for name, array in self.values.items()}


class HistoryFile(abc.ABC):
    """A file in groups of users, each of which is filled or not.

    `users`, `groups`: how many.
    """

    users: int
    groups: int

    def __init__(self, path: Path, manifest: Manifest, column: str) -> None:
        self.path, self.column = path, column
        self.features = {f"event_{f.name}": f for f in manifest.model.item_features}
        inputs = manifest.form.item_tensors(manifest.model, "event", "N")
        self.tensors = list(inputs)

    def identity(self) -> str:
        """Text that another file's content has not: reads the whole file once."""
        return FileEntry.of(self.path).sha256

    def check_users(self) -> None:
        """Raise `EventsError` for a user with two histories, wherever they stand.

        Reads the ids of all users; takes 8 bytes of memory for each.
        """
        hashes = np.fromiter((hash(u) for users in self.names() for u in users), np.int64)
        hashes.sort()
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if not len(twice):
            return
        seen: set[str] = set()
        for users in self.names():
            suspects = np.isin([hash(user) for user in users], twice)
            for user in itertools.compress(users, suspects):
                if user in seen:
                    raise EventsError(
                        f"{self.path} has two histories of user {user!r}: a user is one row"
                    )
                seen.add(user)

    @abc.abstractmethod
    def names(self) -> Iterator[Sequence[str]]:
        """The ids of all users, some at a time."""

    @abc.abstractmethod
    def read(self, group: int) -> Iterator[Piece]:
        """A group's users; raises `EventsError` for what doesn't fit the model."""

    def _piece(self, users: Sequence[str], lengths: NDArray[np.int64], flat: Arrays) -> Piece:
        """Check flat arrays [N, ..] and leave out what a mask leaves out."""
        sizes = {"N": int(lengths.sum())}
        with _among(users):
            values = {
                t.name: take(self.path, flat, t, sizes, self.features.get(t.name))
                for t in self.tensors
            }
        if _MASK.name in flat:
            mask = take(self.path, flat, _MASK, sizes)
            owners = np.repeat(np.arange(len(users)), lengths)[mask]
            lengths = np.bincount(owners, minlength=len(users))
            values = {name: array[mask] for name, array in values.items()}
        return Piece(users, lengths, values)


def open_histories(path: Path, manifest: Manifest, column: str = "user_id") -> HistoryFile:
    """Open a .parquet (streamed, a row group at a time) or an .npz (read whole).

    In an .npz histories are arrays [users, S, ..] with an ``event_mask`` [users, S]. Raises
    `EventsError` or `MissingDependency`.
    """
    if path.suffix == ".parquet":
        return _Parquet(path, manifest, column)
    return _Npz(path, manifest, column)


class _Parquet(HistoryFile):
    def __init__(self, path: Path, manifest: Manifest, column: str) -> None:
        super().__init__(path, manifest, column)
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise MissingDependency("pyarrow", "reading .parquet files", "parquet") from error
        with _as_parquet(path):
            self._file = parquet.ParquetFile(path)
            names = self._file.schema_arrow.names
        metadata = self._file.metadata
        self.users, self.groups = metadata.num_rows, metadata.num_row_groups
        needed = [column, *(t.name for t in self.tensors)]
        for name in needed:
            if name not in names:
                raise EventsError(f"{path} lacks the column {name!r}{nearest(name, names)}")
            if names.count(name) > 1:
                raise EventsError(f"{path} has {names.count(name)} columns called {name!r}")
        self._columns = [*needed, *(n for n in names if n == _MASK.name)]

    def read(self, group: int) -> Iterator[Piece]:
        expected = {t.name: t for t in (*self.tensors, _MASK)}
        for columns in self._batches([group], self._columns):
            users = _users(self.path, columns.pop(self.column))
            lengths, flat = None, {}
            for name, column in columns.items():
                with _among(users):
                    own, flat[name] = _flattened(self.path, expected[name], column)
                lengths = own if lengths is None else lengths
                if not np.array_equal(own, lengths):
                    row = int((own != lengths).argmax())
                    raise EventsError(
                        f"{self.path}: the history of user {users[row]!r} has {lengths[row]} "
                        f"events, but {own[row]} in {name!r}"
                    )
            assert lengths is not None
            yield self._piece(users, lengths, flat)

    def names(self) -> Iterator[Sequence[str]]:
        for columns in self._batches(range(self.groups), [self.column]):
            yield _users(self.path, columns[self.column])

    def _batches(self, groups: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        with _as_parquet(self.path):
            for batch in self._file.iter_batches(PIECE, row_groups=groups, columns=names):
                yield {name: batch.column(name) for name in names}


class _Npz(HistoryFile):
    def __init__(self, path: Path, manifest: Manifest, column: str) -> None:
        super().__init__(path, manifest, column)
        arrays = read_arrays(path)
        if column not in arrays:
            raise EventsError(f"{path} lacks the array {column!r}{nearest(column, arrays)}")
        if arrays[column].ndim != 1:
            raise EventsError(
                f"{path}: {column!r} must have the shape [users], got {list(arrays[column].shape)}"
            )
        self._names = _users(path, arrays[column])
        sizes = {"B": len(self._names)}
        tensors = [*self.tensors, _MASK]
        self._arrays = {
            t.name: take(path, arrays, TensorSpec(t.name, t.dtype, ("B", "S", *t.axes[1:])), sizes)
            for t in tensors
        }
        self.users, self.groups = len(self._names), -(-len(self._names) // PIECE)

    def names(self) -> Iterator[Sequence[str]]:
        yield self._names

    def read(self, group: int) -> Iterator[Piece]:
        part = slice(group * PIECE, (group + 1) * PIECE)
        users = self._names[part]
        events = self._arrays[_MASK.name].shape[1]
        flat = {n: a[part].reshape(-1, *a.shape[2:]) for n, a in self._arrays.items()}
        yield self._piece(users, np.full(len(users), events, np.int64), flat)


@contextmanager
def _as_parquet(path: Path) -> Iterator[None]:
    """What pyarrow raises of a damaged file, whose pages it reads one after the other."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise EventsError(f"{path} can't be read as a .parquet table: {reason(error)}") from error


@contextmanager
def _among(users: Sequence[str]) -> Iterator[None]:
    """Say whose histories are at fault: a file may have millions."""
    try:
        yield
    except EventsError as error:
        raise EventsError(f"{error} (users {users[0]!r} to {users[-1]!r})") from error


def _flattened(path: Path, tensor: TensorSpec, column: Any) -> tuple[NDArray[np.int64], Array]:
    """Lengths of a column of lists, and all their values in one array."""
    import pyarrow as pa

    name, kind = tensor.name, column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise EventsError(f"{path}: {name!r} must be a column of lists, got {kind}")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise EventsError(f"{path}: {name!r} holds a null")
    if not len(values):  # then not even its type says anything
        return lengths.astype(np.int64), np.zeros(tensor.shape({"N": 0}), tensor.dtype)
    inner: tuple[int, ...] = ()
    if pa.types.is_nested(values.type):
        values, width = _vectors(path, name, values)
        inner = (width,)
    array = values.to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64), array.reshape(int(lengths.sum()), *inner)


def _vectors(path: Path, name: str, values: Any) -> tuple[Any, int]:
    """The numbers of lists that are equally long, and how long they are."""
    import pyarrow as pa

    kind = values.type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise EventsError(f"{path}: {name!r} must hold lists of numbers or vectors, got {kind}")
    numbers = values.flatten()
    width = len(numbers) // len(values)
    as_long = fixed or (values.value_lengths().to_numpy(zero_copy_only=False) == width).all()
    if numbers.null_count or not as_long:
        raise EventsError(f"{path}: the vectors in {name!r} differ in length or hold a null")
    return numbers, width


def _users(path: Path, column: Any) -> list[str]:
    """Of a column of either kind of file."""
    try:
        values = column.tolist() if isinstance(column, np.ndarray) else column.to_pylist()
        return [_user(path, value) for value in values]
    except UnicodeError as error:
        raise EventsError(f"{path}: a user's id must be text in UTF-8: {error}") from error


def _user(path: Path, value: object) -> str:
    """A user's id as requests name it: of 7.0, into which a missing neighbour makes 7, none can."""
    if value is None or value in ("", b""):
        raise EventsError(f"{path}: a user's id is missing or empty")
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int)):
        raise EventsError(f"{path}: a user's id must be a text or a whole number, got {value!r}")
    user = value.decode() if isinstance(value, bytes) else str(value)
    user.encode()  # an .npz can hold half a character
    return user
