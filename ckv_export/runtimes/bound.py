"""A runner some of whose inputs stay the same from call to call."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping

from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Runner, RunnerMetadata


class BoundRunner(Runner):
    """`runner` with `constants` bound to its inputs of those names, as a server binds a pool once.

    What it takes are the other inputs. Constants that the graph doesn't take are left out; the
    others are sent to the runtime's device once.
    """

    def __init__(self, runner: Runner, constants: Mapping[str, Array]) -> None:
        taken = {t.name for t in runner.io.inputs}
        self.constants = {name: array for name, array in constants.items() if name in taken}
        super().__init__(without(runner.io, self.constants))
        self.runner = runner
        self._placed: dict[str, Feed] = {}

    def _activate(self) -> None:
        self.runner.activate()
        try:
            self._placed = self.runner.place(self.constants)
        except BaseException:
            self.runner.deactivate()
            raise

    def _deactivate(self) -> None:
        self._placed = {}
        self.runner.deactivate()

    def _infer(self, feeds: Feeds) -> Arrays:
        return self.runner.infer({**feeds, **self._placed})

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        return self.runner.place(arrays)

    def _upload(self, feeds: Feeds) -> None:
        self.runner.upload({**feeds, **self._placed})

    def _describe(self) -> RunnerMetadata:
        return self.runner.metadata()


def without(io: GraphSpec, constants: Container[str]) -> GraphSpec:
    """The graph without its inputs of these names."""
    return dataclasses.replace(io, inputs=tuple(t for t in io.inputs if t.name not in constants))
