"""Runs: training from a configuration to a run folder, and reading it back."""

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.runs.checkpoints import (
    Checkpointer,
    CheckpointMismatchError,
    CheckpointVersionError,
    CorruptCheckpointError,
)
from dropcluster_jax.runs.config import AugmentConfig, CheckpointConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.logging import TensorBoard
from dropcluster_jax.runs.presets import PRESETS
from dropcluster_jax.runs.run_folder import LoadedRun, evaluate_run, list_runs, load_run, read_history

__all__ = [
    "PRESETS",
    "AugmentConfig",
    "CheckpointConfig",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "Checkpointer",
    "CorruptCheckpointError",
    "DataConfig",
    "DropConfig",
    "LoadedRun",
    "TensorBoard",
    "TrainConfig",
    "evaluate_run",
    "list_runs",
    "load_run",
    "read_history",
]
