"""Cases drawn from real events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import EventForm, ModelSpec
from ckv_export.errors import EventsError
from ckv_export.events import Requests
from ckv_export.parity.inputs import Case, generate_user
from ckv_export.runtimes.base import Array, Arrays

USERS_IN_A_CASE = 8
CANDIDATES = 50
APPENDED = (0, 1, 3)

Ints = NDArray[np.int64]


def draw_cases(
    requests: Requests, spec: ModelSpec, form: EventForm, seed: int, users: int
) -> list[Case]:
    """`users` of the file in batches; events are divided into history and appended ones by turns.

    With the file's own candidates a user's whole history stands before them; otherwise histories
    end at a drawn event, and candidates are drawn from everybody's events. User features that the
    file doesn't have are generated.
    """
    rng = np.random.default_rng(seed)
    count, length = requests.events["event_mask"].shape
    if count == 0 or length == 0:
        raise EventsError("the file of events has no events")
    if any(array.shape[1] == 0 for array in (requests.candidates or {}).values()):
        raise EventsError("the file of events has candidates, none for anybody: leave them out")
    chosen = np.sort(rng.permutation(count)[:users])
    batches = np.array_split(chosen, -(-len(chosen) // USERS_IN_A_CASE))
    return [
        _case(requests, spec, form, batch, APPENDED[number % len(APPENDED)], rng)
        for number, batch in enumerate(batches)
    ]


def _case(
    requests: Requests,
    spec: ModelSpec,
    form: EventForm,
    users: Ints,
    appended: int,
    rng: np.random.Generator,
) -> Case:
    length = requests.events["event_mask"].shape[1]
    appended = min(appended, length)
    end = length if requests.candidates else int(rng.integers(max(1, appended), length + 1))
    inputs: Arrays = {}
    for name, array in requests.events.items():
        rest, events = name.removeprefix("event_"), array[users, :end]
        inputs[f"history_{rest}"] = events[:, : end - appended]
        inputs[f"append_{rest}"] = events[:, end - appended :]
    inputs |= _candidates(requests, spec, users, end, rng)
    if requests.users is not None:
        inputs |= {name: array[users] for name, array in requests.users.items()}
    else:
        inputs |= generate_user(spec, form, len(users), rng)
    name = f"users {users[0]} to {users[-1]}, {end} events, {appended} of them appended"
    labels = None if requests.labels is None else requests.labels[users]
    return Case(name, {n: np.ascontiguousarray(a) for n, a in inputs.items()}, labels)


def _candidates(
    requests: Requests, spec: ModelSpec, users: Ints, end: int, rng: np.random.Generator
) -> Arrays:
    if requests.candidates is not None:
        return {name: array[users] for name, array in requests.candidates.items()}
    row, place = np.nonzero(requests.events["event_mask"])
    if len(row) == 0:
        raise EventsError("the file of events has no event that is not masked: no candidates")
    drawn = rng.integers(0, len(row), (len(users), CANDIDATES))
    return dict(_drawn(requests.events, spec, row[drawn], place[drawn], users, end))


def _drawn(
    events: Arrays, spec: ModelSpec, row: Ints, place: Ints, users: Ints, end: int
) -> Iterator[tuple[str, Array]]:
    """The events at (row, place) as candidates, shown at the moment of the user's last event."""
    for name, array in events.items():
        feature = name.removeprefix("event_")
        if feature == "mask":
            continue
        values = array[row, place]
        if spec.timestamp is not None and feature == spec.timestamp.name:
            values = np.broadcast_to(array[users, end - 1][:, None], row.shape)
        yield f"candidate_{feature}", values
