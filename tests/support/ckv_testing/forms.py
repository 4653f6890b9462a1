"""Models with every kind of event, and the forms that an event can have."""

from __future__ import annotations

from ckv_export.contract import AttentionSpec, EventForm, FeatureSpec, ModelSpec
from ckv_testing.draw import DNN, make_spec

EXTERNAL = EventForm("external")
BY_ID = EventForm(item_key="item_id")
TIME = FeatureSpec("time", "item", "timestamp", 0)

ITEM = (
    FeatureSpec("cate_id", "item", "categorical", 4, vocab_size=5),
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=30),
    # Means of two are exact: no search may depend on how they were rounded.
    FeatureSpec("tags", "item", "sequence", 2, vocab_size=9, length=2),
)
USER = (
    FeatureSpec("age", "user", "numeric", 2),
    FeatureSpec("face", "user", "vector", 3, length=7, projected=True),
)
ATTENTION = AttentionSpec(8, 2, 2, 1, 10, 7)
SIM = make_spec("sim", features=(*ITEM, *USER), attention=ATTENTION)
WIDE = AttentionSpec(32, 2, 2, 1, 10, 7)
HSTU = ModelSpec("hstu", (*ITEM, TIME, *USER), WIDE, DNN, 20, num_layers=2)
