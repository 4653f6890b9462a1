r"""How Polygraphy shall compare outputs of the bundle's graphs.

::

    polygraphy run decode.onnx --onnxrt --trt --compare-func-script polygraphy/compare.py \
        --data-loader-script polygraphy/data_loader.py:load_decode

Row numbers are compared for equality: to Polygraphy's default, which fails an element only where
it exceeds both tolerances, row 9998 is close to 9999. Everything else has the bounds of
``parity.json``. A runtime that flips a near-tie fails here; `ckv-export parity` tells such flips,
and their router margins, from faults. Only numpy is needed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

_BUNDLE = Path(__file__).resolve().parents[1]


def compare_outputs(first: Any, second: Any) -> OrderedDict[str, bool]:
    """Whether each output of two runs of one iteration agrees; what one lacks doesn't."""
    names = list(dict.fromkeys([*first.keys(), *second.keys()]))
    return OrderedDict((n, n in first and n in second and _same(n, first, second)) for n in names)


def _same(name: str, first: Any, second: Any) -> bool:
    a, b = (np.asarray(outputs[name]) for outputs in (first, second))
    if a.shape != b.shape:
        print(f"{name}: shapes {a.shape} and {b.shape}")
        return False
    if a.dtype.kind in "biu":
        differing = int((a != b).sum())
        if differing:
            print(f"{name}: {differing} of {a.size} row numbers differ")
        return differing == 0
    absolute, relative = _bound(name)
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = max(1.0, float(np.abs(b).max(initial=0.0)))
    # Not "no element beyond": a NaN would be none.
    within = np.abs(a - b) <= absolute * scale + relative * np.abs(b)
    if not within.all():
        print(f"{name}: off by up to {np.abs(a - b).max():.3g}")
    return bool(within.all())


def _bound(name: str) -> tuple[float, float]:
    """Absolute and relative tolerance of an output: the table's row times the layers."""
    manifest = json.loads((_BUNDLE / "manifest.json").read_text())
    table = json.loads((_BUNDLE / "parity.json").read_text())["tolerances"]
    layers, precision = manifest["model"]["num_layers"], manifest["precision"]
    kind = "score" if name == "score" else "user"
    layered = f"{kind}, layered" if layers > 1 else kind
    row = next(table[n] for n in (f"{layered}, {precision}", layered, kind) if n in table)
    return row["absolute"] * layers, row["relative"] * layers
