"""A request for scores, answered: record from the store, decode, record back into the store.

Knows no server: `Scorer` takes requests and a function that runs the decode graph. It needs
nothing but numpy, so that a copy of it can go where PyTorch isn't.
"""

from ckv_export.serving.decoders import Decode, in_process
from ckv_export.serving.request import Request, request_tensors
from ckv_export.serving.scorer import Answer, Scorer, ScorerOptions

__all__ = [
    "Answer",
    "Decode",
    "Request",
    "Scorer",
    "ScorerOptions",
    "in_process",
    "request_tensors",
]
