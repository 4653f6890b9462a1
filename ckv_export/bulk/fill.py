"""A store filled from a file, group by group; what is done stays done when the run is stopped.

The store itself remembers which groups are finished. A group that was not is begun again: writing
a record twice changes nothing. What is finished counts until records of another form are written to
the store, since those take the place of these: who goes back to an earlier model begins again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ckv_export.bulk.encode import Encoder
from ckv_export.bulk.histories import HistoryFile, Piece, open_histories
from ckv_export.cache.pool_file import load_pools
from ckv_export.cache.record import RecordLayout, decode, kept_events
from ckv_export.errors import RecordError
from ckv_export.manifest import open_bundle
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.store import Change, Entry, Store, open_store

_ERA = "prefill"


@dataclass(frozen=True)
class FillOptions:
    """What to fill, and how.

    `column`: of user ids. `user_dtype`, `max_events`: as the server has them (`ScorerOptions`).
    `replace`: also records that this model's server may have appended to since. `restart`: forget
    what earlier runs have done. `threads`: of ONNX Runtime, None for one per core.
    """

    bundle: Path
    events: Path
    store: str
    column: str = "user_id"
    user_dtype: str = "float16"
    max_events: int | None = None
    replace: bool = False
    restart: bool = False
    threads: int | None = None


@dataclass
class Tally:
    """Users read, records written, records kept as they were, users without events; bytes written.

    `skipped`: users among them whose group an earlier run has finished.
    """

    users: int = 0
    written: int = 0
    kept: int = 0
    empty: int = 0
    events: int = 0
    bytes: int = 0
    skipped: int = 0

    def add(self, other: Tally) -> None:
        """Count `other` in."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


Progress = Callable[[Tally], None]
Found = Entry | RecordError | None
"""What a store holds of a user; the error where it is no entry, as a server would raise it."""


class Filler:
    """One process's part of the work; the same on one machine and on each of many.

    `job`: names the work in the store; None to find it by reading the whole file of histories, and
    to refuse one that names a user twice.
    """

    def __init__(self, options: FillOptions, job: str | None = None) -> None:
        manifest = open_bundle(options.bundle)
        self.options = options
        self.file: HistoryFile = open_histories(options.events, manifest, options.column)
        self.layout = RecordLayout.of(manifest, options.user_dtype)
        self.max_events = kept_events(self.layout, manifest, options.max_events)
        if job is None:
            self.file.check_users()  # before there is a store
        runner = BoundRunner(
            OnnxRuntimeRunner(
                options.bundle / "prefill.onnx", manifest.graph("prefill"), threads=options.threads
            ),
            load_pools(options.bundle, manifest),
        )
        runner.activate()
        batch = manifest.profile.axes["B"].max
        self.encoder = Encoder(self.layout, runner.io, runner.infer, batch)
        self.store: Store = open_store(options.store)
        fingerprint = self.layout.fingerprint.hex()
        self.job = job or self._job(fingerprint)
        self.era = self._era(f"{fingerprint} {self.layout.describe()}")

    def _job(self, fingerprint: str) -> str:
        """Of all that decides what is written, so that a job finished once is finished."""
        options = self.options
        wishes = (self.max_events, options.column, options.replace, fingerprint)
        named = json.dumps([self.file.identity(), self.layout.describe(), *wishes])
        return f"prefill/{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    def _era(self, form: str) -> str:
        """Names the time since which all that was written to the store has been of one form."""
        current = hashlib.sha256(form.encode()).digest()
        era = self.store.note(_ERA)
        if era is None or not era.startswith(current):
            era = current + secrets.token_bytes(8)
        self.store.put_note(_ERA, era)
        return era.hex()

    def _note(self, group: int) -> str:
        return f"{self.job}/{self.era}/{group}"

    def finished(self, group: int) -> Tally | None:
        """What an earlier run did to the group, if it finished it."""
        note = None if self.options.restart else self.store.note(self._note(group))
        return None if note is None else Tally(**json.loads(note))

    def fill(self, group: int, progress: Progress = lambda tally: None) -> Tally:
        """Write the records of a group; `progress` hears of each piece."""
        done = Tally()
        for piece in self.file.read(group):
            part = self._fill_piece(piece)
            done.add(part)
            progress(part)
        self.store.put_note(self._note(group), json.dumps(asdict(done)).encode())
        return done

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _fill_piece(self, piece: Piece) -> Tally:
        tally = Tally(users=len(piece.users), empty=int((piece.lengths == 0).sum()))
        before = self._before(piece.users)
        chosen = [
            position
            for position, user in enumerate(piece.users)
            if piece.lengths[position] and self._replaces(before[user])
        ]
        histories = [piece.history(position, self.max_events) for position in chosen]
        changes = []
        for position, record in zip(chosen, self.encoder.encode(histories), strict=True):
            user, events = piece.users[position], int(piece.lengths[position])
            changes.append(_change(user, Entry(record, events), before[user]))
            tally.events += events
        happened = self.store.write(changes)
        tally.written = sum(happened)
        tally.kept = tally.users - tally.empty - tally.written
        tally.bytes = sum(
            len(change.entry.record) for change, done in zip(changes, happened, strict=True) if done
        )
        return tally

    def _before(self, users: Sequence[str]) -> dict[str, Found]:
        """What the store holds of each, in one call unless some of it is no entry."""
        try:
            return dict(zip(users, self.store.read(users), strict=True))
        except RecordError as error:
            if len(users) == 1:
                return {users[0]: error}
            half = len(users) // 2
            return self._before(users[:half]) | self._before(users[half:])

    def _replaces(self, found: Found) -> bool:
        """Whether a record is written: over one that the server would refuse always."""
        if self.options.replace or not isinstance(found, Entry):
            return True
        try:
            decode(self.layout, found.record)
        except RecordError:
            return True
        return False


def _change(user: str, entry: Entry, found: Found) -> Change:
    """Only if nobody wrote since; nobody appends to what can't be read."""
    if isinstance(found, RecordError):
        return Change(user, entry, force=True)
    return Change(user, entry, found)


def fill_store(options: FillOptions, progress: Callable[[Tally, int], None]) -> Tally:
    """Fill on this machine; `progress` hears the tally so far and how many users there are.

    Raises `CkvError`; whatever is finished by then stays.
    """
    filler, total = Filler(options), Tally()

    def hear(part: Tally) -> None:
        total.add(part)
        progress(total, filler.file.users)

    try:
        for group in range(filler.file.groups):
            earlier = filler.finished(group)
            if earlier is None:
                filler.fill(group, hear)
            else:
                hear(Tally(users=earlier.users, skipped=earlier.users))
    finally:
        filler.close()
    return total
