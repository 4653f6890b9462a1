"""A bundle's table of contents.

``manifest.json`` is the only thing that later rooms know of a bundle; they never open the
checkpoint it came from.
"""

from ckv_export.manifest.bundle import (
    ITEM_TABLE_FILE,
    POOLS_FILE,
    bundle_in,
    is_bundle,
    open_bundle,
    read_manifest,
    verify,
)
from ckv_export.manifest.contents import (
    FILE_NAME,
    POOLS,
    SCHEMA_VERSION,
    EngineEntry,
    FileEntry,
    ItemTable,
    Manifest,
)

__all__ = [
    "FILE_NAME",
    "ITEM_TABLE_FILE",
    "POOLS",
    "POOLS_FILE",
    "SCHEMA_VERSION",
    "EngineEntry",
    "FileEntry",
    "ItemTable",
    "Manifest",
    "bundle_in",
    "is_bundle",
    "open_bundle",
    "read_manifest",
    "verify",
]
