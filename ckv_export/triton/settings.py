"""What the orchestrating model is told by its ``config.pbtxt``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

BUNDLE = "bundle"
"""Folder of the manifest, and of the graph where decode runs in the model's own process."""
STORE_VARIABLE = "CKV_STORE_URL"
"""Environment variable that replaces the store's address: passwords belong into no repository."""


@dataclass(frozen=True)
class Settings:
    """Parameters of the model.

    `graph`: "decode" or "decode_items". `decode_model`: the server's model that runs it, None to
    run it by ONNX Runtime in this process, with `threads`.
    """

    store: str
    graph: str
    decode_model: str | None
    user_dtype: str = "float16"
    max_events: int | None = None
    threads: int = 1

    def parameters(self) -> dict[str, str]:
        """As texts, without what is None."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Settings:
        """Read `parameters` again."""
        most = parameters.get("max_events")
        return cls(
            parameters["store"],
            parameters["graph"],
            parameters.get("decode_model"),
            parameters["user_dtype"],
            None if most is None else int(most),
            int(parameters["threads"]),
        )
