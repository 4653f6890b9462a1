"""Where a server keeps its users' records: one SQLite file, or Redis for several servers.

The store moves bytes and knows no model. It promises that a write happens whole or not at all, and
only if nobody else wrote meanwhile (`Change.before`), so that whoever appends to a record can
read, extend and write it back without losing an event or counting one twice.
"""

from ckv_export.store.base import Change, Counters, Kept, Store
from ckv_export.store.entry import TOKENS_KEPT, Entry, token_of
from ckv_export.store.urls import check_address, open_store

__all__ = [
    "TOKENS_KEPT",
    "Change",
    "Counters",
    "Entry",
    "Kept",
    "Store",
    "check_address",
    "open_store",
    "token_of",
]
