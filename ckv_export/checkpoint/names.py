"""FuxiCTR tensor names and the native names they become, as data.

A run folder holds one state dict; its keys stand on the left. Tables of features and
the layers of the scoring network carry names and numbers of their own: `fuxi_features`
and `fuxi_dnn` walk those.
"""

from __future__ import annotations

# The first of these keys that a state dict holds tells the kind. SDIM has rotations too.
KIND_MARKS = {
    "W_a.weight": "sim",
    "powers_of_two": "sdim",
    "random_rotations": "eta",
    "long_attention.W_h.weight": "twin",
}

EMBEDDING = "embedding_layer.embedding_layer."
TABLES = EMBEDDING + "embedding_layers."
ENCODERS = EMBEDDING + "feature_encoders."

ATTENTION = {
    "short_attention.W_q.weight": "attention.0.q.weight",
    "short_attention.W_k.weight": "attention.0.k.weight",
    "short_attention.W_v.weight": "attention.0.v.weight",
    "short_attention.W_o.weight": "attention.0.o.weight",
}

# Only a shared side has these two.
SHARED = {
    "k": {
        "short_attention.router_K.weight": "attention.0.k.router.weight",
        "short_attention.global_K_pool": "attention.0.k.pool",
    },
    "v": {
        "short_attention.router_V.weight": "attention.0.v.router.weight",
        "short_attention.global_V_pool": "attention.0.v.pool",
    },
}

_LONG_ATTENTION = {
    "long_attention.W_q.weight": "long.q.weight",
    "long_attention.W_k.weight": "long.k.weight",
    "long_attention.W_v.weight": "long.v.weight",
    "long_attention.W_o.weight": "long.o.weight",
}

# random_rotations loses its leading axis of 1; powers_of_two is checked and dropped.
LONG = {
    "sim": {
        "W_a.weight": "long.gsu_target.weight",
        "W_b.weight": "long.gsu_event.weight",
        **_LONG_ATTENTION,
    },
    "eta": {"random_rotations": "long.rotations", **_LONG_ATTENTION},
    "sdim": {"random_rotations": "long.rotations"},
    "twin": {
        "long_attention.W_q.weight": "long.q.weight",
        "long_attention.W_h.weight": "long.k.weight",
        "long_attention.W_v.weight": "long.v.weight",
        "long_attention.W_o.weight": "long.o.weight",
    },
}

NORM = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
ACTIVATIONS = {
    "prelu": {"weight": "weight"},
    "dice": {"alpha": "alpha", "bn.running_mean": "mean", "bn.running_var": "var"},
}

TRAINING_ONLY = ("dnn_aux.*", "*.num_batches_tracked")
