"""Runs: training from a configuration to a run folder, and reading it back."""

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.runs.checkpoints import Checkpointer, CheckpointMismatchError, CorruptCheckpointError
from dropcluster_jax.runs.comparison import BudgetError, CompareConfig, compare
from dropcluster_jax.runs.config import AugmentConfig, CheckpointConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.evaluation import evaluate_run
from dropcluster_jax.runs.load import LoadedRun, list_runs, load_run
from dropcluster_jax.runs.log import read_history
from dropcluster_jax.runs.presets import PRESETS
from dropcluster_jax.runs.tensorboard import TensorBoard
from dropcluster_jax.runs.trainer import train

__all__ = [
    "PRESETS",
    "AugmentConfig",
    "BudgetError",
    "CheckpointConfig",
    "CheckpointMismatchError",
    "Checkpointer",
    "CompareConfig",
    "CorruptCheckpointError",
    "DataConfig",
    "DropConfig",
    "LoadedRun",
    "TensorBoard",
    "TrainConfig",
    "compare",
    "evaluate_run",
    "list_runs",
    "load_run",
    "read_history",
    "train",
]
