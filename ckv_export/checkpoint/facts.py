"""Named facts from a hand-edited file: typed look-ups whose errors say where to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ckv_export.errors import CheckpointError, nearest

T = TypeVar("T")
WORDS = {int: "a whole number", bool: "true or false", str: "a text"}


class Facts:
    """The `values` of one section of a file; `where` names it in errors.

    A null counts as absent, as FuxiCTR writes it for "not set".
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = {str(name): v for name, v in values.items() if v is not None}
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        """Return the value as it is, None if absent."""
        return self.values.get(name)

    def need(self, name: str, kind: type[T]) -> T:
        """Return a value of type `kind`; raise `CheckpointError` if absent or of another type."""
        if name not in self.values:
            raise CheckpointError(
                f"{self.where} lacks {name!r}, which the weights don't tell"
                f"{nearest(name, self.values)}"
            )
        value = self.values[name]
        # bool is an int in Python; a fact that must be a number may not be `true`
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.where}: {name} must be {WORDS.get(kind, kind.__name__)}, got {value!r}"
            )
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """Return what `need` does, but None if absent."""
        return self.need(name, kind) if name in self.values else None

    def agree(self, name: str, actual: object, what: str) -> None:
        """Raise `CheckpointError` if the fact is given and isn't `actual`."""
        if name in self.values and self.values[name] != actual:
            raise CheckpointError(
                f"{self.where} says {name} {self.values[name]!r}, but {what} {actual!r}; "
                "do these files belong together?"
            )
