"""Training: pure steps, schedules, data parallelism and the training loop."""

from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.loop import NonFiniteError, evaluate, fit
from dropcluster_jax.training.schedules import every, ramp
from dropcluster_jax.training.steps import Steps, TrainState, classification_metrics, make_steps, softmax_cross_entropy

__all__ = [
    "DataParallel",
    "NonFiniteError",
    "Steps",
    "TrainState",
    "classification_metrics",
    "evaluate",
    "every",
    "fit",
    "make_steps",
    "ramp",
    "softmax_cross_entropy",
]
