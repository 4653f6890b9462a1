"""The JSON Schema of the report, as the package carries it."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

SCHEMA_FILE = "parity.schema.json"


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) that `ParityReport.to_dict` follows."""
    text = importlib.resources.files("ckv_export.parity").joinpath(SCHEMA_FILE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
