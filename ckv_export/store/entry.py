"""What stands in a store for one user: the record, and what makes appending to it safe.

Layout, little-endian, one value per user::

    offset  size
         0     4   magic "CKVS"
         4     2   version of this layout, 1
         6     2   n, number of tokens
         8     8   revision: random bytes, others with every write
        16     8   events: how many events the user has had since the record was made
        24   8 n   tokens of the last appends, the newest last
    24+8n          the record
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass, field

from ckv_export.errors import RecordError

_MAGIC, _VERSION = b"CKVS", 1
_HEAD = struct.Struct("<4sHH8sQ")
TOKEN_BYTES = 8
REVISION_AT, REVISION_BYTES = 8, 8

TOKENS_KEPT = 16
"""An append repeated after more than so many others of the same user is taken for a new one."""


def new_revision() -> bytes:
    """Bytes that no other write has."""
    return secrets.token_bytes(REVISION_BYTES)


def token_of(*parts: str | bytes) -> bytes:
    """Name an append: 8 bytes that follow from `parts` alone."""
    digest = hashlib.blake2b(digest_size=TOKEN_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


@dataclass(frozen=True)
class Entry:
    """A user's record as stored.

    `events`: how many the user has had, those that a record no longer holds included. `tokens`:
    names of the last appends (`token_of`), so that a repeated one is recognised. `revision`: what
    tells this write from every other.
    """

    record: bytes
    events: int = 0
    tokens: tuple[bytes, ...] = ()
    revision: bytes = field(default_factory=new_revision)

    def followed_by(self, record: bytes, added: int, token: bytes | None) -> Entry:
        """The entry after an append of `added` events that made it `record`."""
        tokens = self.tokens if token is None else (*self.tokens, token)[-TOKENS_KEPT:]
        return Entry(record, self.events + added, tokens)

    @property
    def head_bytes(self) -> int:
        """Bytes in front of the record in `pack`."""
        return _HEAD.size + TOKEN_BYTES * len(self.tokens)

    def pack(self) -> bytes:
        """The layout above."""
        head = _HEAD.pack(_MAGIC, _VERSION, len(self.tokens), self.revision, self.events)
        return b"".join((head, *self.tokens, self.record))

    @classmethod
    def unpack(cls, data: bytes, whose: str) -> Entry:
        """Read `pack` bytes; raises `RecordError` naming `whose` they are on anything else."""
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            raise RecordError(f"what the store holds of {whose} is no record of ckv-export")
        _, version, count, revision, events = _HEAD.unpack_from(data)
        start = _HEAD.size + count * TOKEN_BYTES
        if version != _VERSION or count > TOKENS_KEPT or len(data) < start:
            raise RecordError(
                f"what the store holds of {whose} is damaged or of another version of ckv-export "
                f"(layout {version}, this one reads {_VERSION})"
            )
        tokens = tuple(data[at : at + TOKEN_BYTES] for at in range(_HEAD.size, start, 8))
        return cls(data[start:], events, tokens, revision)
