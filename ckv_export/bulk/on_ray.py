"""A store filled by many machines: Ray Data hands the groups of a file to workers.

A worker does what `fill_store` does; bundle, file and store must be where every machine reaches
them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from types import ModuleType
from typing import Any

import numpy as np

from ckv_export.bulk.fill import Filler, FillOptions, Tally
from ckv_export.errors import MissingDependency
from ckv_export.runtimes.base import Arrays


class Worker:
    """A process of Ray's that fills groups."""

    def __init__(self, options: FillOptions, job: str) -> None:
        self.filler = Filler(options, job)

    def __call__(self, batch: Arrays) -> Arrays:
        """Fill the groups ``id`` [n]; their tallies, a column each."""
        done = [asdict(self._fill(int(group))) for group in batch["id"]]
        return {f.name: np.array([tally[f.name] for tally in done]) for f in fields(Tally)}

    def _fill(self, group: int) -> Tally:
        earlier = self.filler.finished(group)
        if earlier is not None:
            return Tally(users=earlier.users, skipped=earlier.users)
        return self.filler.fill(group)


def fill_on_ray(
    options: FillOptions, workers: int, progress: Callable[[Tally, int], None]
) -> Tally:
    """As `fill_store`, with that many workers of the cluster that Ray finds, or of this machine.

    Raises `CkvError` for bad input; what a worker raises ends the run, and what is finished stays.
    """
    ray = _module()
    opened = Filler(options)
    job, groups, users = opened.job, opened.file.groups, opened.file.users
    opened.close()
    started = not ray.is_initialized()
    if started:
        _start(ray, workers)
    try:
        total = Tally()
        for part in _tallies(ray, options, job, groups, workers):
            total.add(part)
            progress(total, users)
        return total
    finally:
        if started:
            ray.shutdown()


def _start(ray: ModuleType, workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or make one of this machine.

    A worker takes a processor, as Ray counts them, and so does what feeds the workers.
    """
    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1}
    ray.init(log_to_driver=False, include_dashboard=False, **here)


def _tallies(ray: ModuleType, options: FillOptions, job: str, groups: int, workers: int) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    filled = ray.data.range(groups, override_num_blocks=max(groups, 1)).map_batches(
        Worker,
        fn_constructor_args=(options, job),
        batch_size=1,
        concurrency=min(workers, max(groups, 1)),
    )
    for row in filled.iter_rows():
        yield Tally(**{name: int(value) for name, value in row.items()})


def _module() -> ModuleType:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingDependency("ray", "filling a store on a cluster", "ray") from error
