"""Train a small real model: for the demo and the tests, not a training framework."""

from ckv_export.training.clicks import ClickData, Clicks
from ckv_export.training.demo import demo_data, demo_spec, train_demo
from ckv_export.training.initial import initial_state
from ckv_export.training.loop import Progress, TrainingReport, TrainingSettings, train

__all__ = [
    "ClickData",
    "Clicks",
    "Progress",
    "TrainingReport",
    "TrainingSettings",
    "demo_data",
    "demo_spec",
    "initial_state",
    "train",
    "train_demo",
]
