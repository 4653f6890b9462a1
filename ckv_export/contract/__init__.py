"""Names, axes and dtypes of everything that crosses a boundary.

One `ModelSpec` describes a model; from it follow the inputs and outputs of the graphs
(`prefill_io`, `decode_io`, `decode_items_io`), the cache layout (`CacheSpec`) and the shape ranges
of engines (`Profile`). ONNX export, TensorRT profiles, servers and parity all read them here, so a
name is spelled once.
"""

from ckv_export.contract.profile import Profile, Range
from ckv_export.contract.spec import (
    PRECISIONS,
    SIZE_END,
    AttentionSpec,
    DnnSpec,
    FeatureSpec,
    ModelSpec,
    Option,
    require,
    require_choice,
)
from ckv_export.contract.tensors import (
    FEATURES,
    Axis,
    CacheSpec,
    EventForm,
    GraphSpec,
    TensorSpec,
    decode_io,
    decode_items_io,
    feature_tensor,
    item_table_tensors,
    prefill_io,
)

__all__ = [
    "FEATURES",
    "PRECISIONS",
    "SIZE_END",
    "AttentionSpec",
    "Axis",
    "CacheSpec",
    "DnnSpec",
    "EventForm",
    "FeatureSpec",
    "GraphSpec",
    "ModelSpec",
    "Option",
    "Profile",
    "Range",
    "TensorSpec",
    "decode_io",
    "decode_items_io",
    "feature_tensor",
    "item_table_tensors",
    "prefill_io",
    "require",
    "require_choice",
]
