"""Requests of many users answered together, each user's events in their order.

Requests are taken in rounds. In a round a user's requests count up to the first that appends, all
of them read the same record; what is appended is written only if the record is still the one that
was read, and otherwise the request waits for the next round and the fresh record.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckv_export.cache.record import RecordLayout, append, count, empty, kept_events, user_events
from ckv_export.errors import CkvError, RecordError, StoreError
from ckv_export.manifest import Manifest
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.serving.batch import decode_inputs, history_events
from ckv_export.serving.decoders import Decode
from ckv_export.serving.request import Request, RequestCheck
from ckv_export.store import Change, Entry, Kept, Store

_LONGEST_WAIT = 0.02


@dataclass(frozen=True)
class ScorerOptions:
    """How a scorer keeps its users.

    `user_dtype`: how user parts are stored. `max_events`: size cap of a record, at most and by
    default the longest history that the model was exported for. `attempts`: how often a request
    whose record others keep changing is tried; each that fails is an append of somebody else, so it
    takes many where several servers have long queues of one user's.
    """

    user_dtype: str = "float16"
    max_events: int | None = None
    attempts: int = 100


@dataclass(frozen=True)
class Answer:
    """Scores [C] float32, and how many events the user has had, those of the request included."""

    scores: Array
    events: int


@dataclass
class _Work:
    """A request on its way: the entry that was read for it, and what came of it."""

    request: Request
    entry: Entry | None = None
    attempts: int = 0
    outcome: Answer | CkvError | None = None
    change: Change | None = None


class Scorer:
    """See the module. `graph`: "decode" or "decode_items", whichever `decode` runs.

    Several may work on one store, in any number of processes; one is not for several threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        decode: Decode,
        options: ScorerOptions | None = None,
        graph: str | None = None,
    ) -> None:
        self.store, self.decode = store, decode
        self.options = options or ScorerOptions()
        graph = graph or ("decode_items" if manifest.item_table else "decode")
        self.layout = RecordLayout.of(manifest, self.options.user_dtype, graph=graph)
        self.check = RequestCheck(manifest, graph, kept_events(self.layout, manifest))
        self.max_batch = manifest.profile.axes["B"].max
        self.max_events = kept_events(self.layout, manifest, self.options.max_events)

    def score(self, requests: Sequence[Request]) -> list[Answer | CkvError]:
        """Answer `requests` in their order; whoever can't be gets an error, the others scores.

        An `InputError` is the requester's, a `RecordError` asks for a new prefill of that user; any
        other may be gone at the next try, which is safe for requests with a token.
        """
        works = [self._begun(request) for request in requests]
        known: dict[str, Entry | None] = {}
        while waiting := [work for work in works if work.outcome is None]:
            _give_way(max(work.attempts for work in waiting))
            self._round(list(_of_one_round(waiting)), known)
        return [work.outcome for work in works if work.outcome is not None]

    def warm_up(self) -> None:
        """Run decode once without and once with a new event; raises what it raises."""
        for appended in (0, min(1, self.check.most["T"])):
            sizes = {"T": appended, "C": 1}
            tensors = self.check.tensors.values()
            inputs: Arrays = {t.name: np.zeros(t.shape(sizes), t.dtype) for t in tensors}
            self._decoded([_Work(Request("nobody", inputs))])

    def _begun(self, request: Request) -> _Work:
        try:
            return _Work(self.check(request))
        except CkvError as error:
            return _Work(request, outcome=error)

    def _round(self, works: Sequence[_Work], known: dict[str, Entry | None]) -> None:
        self._read(works, known)
        for group in self._groups([work for work in works if work.outcome is None]):
            self._answer(group)
        self._write([work for work in works if work.change is not None], known)

    def _read(self, works: Sequence[_Work], known: dict[str, Entry | None]) -> None:
        """Give each work its user's entry, or an error."""
        users = list(dict.fromkeys(w.request.user for w in works if w.request.user not in known))
        try:
            known.update(zip(users, self.store.read(users), strict=True))
        except RecordError as error:
            if len(works) == 1:
                _fail(works, error)
                return
            for work in works:
                self._read([work], known)
            return
        except CkvError as error:
            _fail(works, error)
            return
        for work in works:
            work.entry = known[work.request.user]
            if work.entry is not None and work.request.token in work.entry.tokens:
                work.request = work.request.without_events()

    def _groups(self, works: Sequence[_Work]) -> Iterator[list[_Work]]:
        """Works that fit one call: for a model with a window, of equally many new events.

        Padding among those takes places in a window; HSTU counts real events alone.
        """
        groups: dict[int, list[_Work]] = {}
        for work in works:
            appended = 0 if self.layout.pad_to is None else work.request.appended
            groups.setdefault(appended, []).append(work)
        for group in groups.values():
            for start in range(0, len(group), self.max_batch):
                yield group[start : start + self.max_batch]

    def _answer(self, works: Sequence[_Work]) -> None:
        """Give works of one call their answers and changes, or errors.

        Where a record is bad, its user alone gets the error: each work then has its own call.
        """
        try:
            tensors = self._decoded(works)
        except CkvError as error:
            if len(works) == 1 or not isinstance(error, RecordError):
                _fail(works, error)
                return
            for work in works:
                self._answer([work])
            return
        for position, work in enumerate(works):
            try:
                self._finish(work, tensors, position)
            except RecordError as error:
                _fail([work], error)

    def _decoded(self, works: Sequence[_Work]) -> Arrays:
        """Inputs and outputs of one call."""
        records = [self._record(work) for work in works]
        requests = [work.request for work in works]
        events = [count(self.layout, record) for record in records]
        appended = max(request.appended for request in requests)
        size = history_events(self.layout, events, appended, self.max_events)
        tensors = list(self.check.tensors.values())
        feeds = decode_inputs(self.layout, tensors, requests, records, size, self.max_events)
        return feeds | self.decode(feeds)

    def _record(self, work: _Work) -> bytes:
        return empty(self.layout) if work.entry is None else work.entry.record

    def _finish(self, work: _Work, tensors: Mapping[str, Array], position: int) -> None:
        request, entry = work.request, work.entry
        candidates = len(next(a for n, a in request.inputs.items() if n.startswith("candidate_")))
        scores = tensors["score"][position, :candidates]
        before = entry or Entry(empty(self.layout))
        if request.appended:
            added = user_events(self.layout, tensors, position)
            record = append(self.layout, before.record, added, max_events=self.max_events)
            after = before.followed_by(record, request.appended, request.token)
            kept = self._kept(before.record, record, request.appended)
            work.change = Change(request.user, after, entry, kept=kept)
        work.outcome = Answer(scores, before.events + request.appended)

    def _kept(self, before: bytes, record: bytes, appended: int) -> Kept:
        """The events of `before` that stand in `record` as well: one run of rows."""
        row, events = self.layout.events.row_bytes, count(self.layout, record)
        rows = max(events - appended, 0)
        return Kept(len(before) - rows * row, len(record) - events * row, rows * row)

    def _write(self, works: Sequence[_Work], known: dict[str, Entry | None]) -> None:
        """Write changes; whose record somebody else changed first waits for another round."""
        if not works:
            return
        changes = [work.change for work in works if work.change is not None]
        try:
            happened = self.store.write(changes)
        except CkvError as error:
            _fail(works, error)
            for change in changes:  # which may have happened
                known.pop(change.user, None)
            return
        for work, change, done in zip(works, changes, happened, strict=True):
            if done:
                known[change.user] = change.entry
            else:
                known.pop(change.user, None)
                self._again(work)
            work.change = None

    def _again(self, work: _Work) -> None:
        work.outcome, work.attempts = None, work.attempts + 1
        if work.attempts >= self.options.attempts:
            work.outcome = StoreError(
                f"others changed the record of user {work.request.user!r} at each of "
                f"{work.attempts} attempts: try again"
            )


def _give_way(attempts: int) -> None:
    """Wait, longer after more attempts, and not as long as the others who lost as often."""
    if attempts:
        time.sleep(random.uniform(0, min(0.001 * attempts, _LONGEST_WAIT)))


def _of_one_round(works: Sequence[_Work]) -> Iterator[_Work]:
    """In their order, a user's works up to the first that appends."""
    closed: set[str] = set()
    for work in works:
        if work.request.user not in closed:
            yield work
            if work.request.appended:
                closed.add(work.request.user)


def _fail(works: Sequence[_Work], error: CkvError) -> None:
    for work in works:
        named = f"user {work.request.user!r}: {error}" if isinstance(error, RecordError) else None
        work.outcome = RecordError(named) if named else error
