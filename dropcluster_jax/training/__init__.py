"""Training: pure steps, and the loop that calls them.

`make_steps` needs JAX, Flax and Optax alone, and so does `fit`, fed by any iterable of batches. `run` is what
`dropcluster train` does: from a configuration to a folder with results.
"""

from dropcluster_jax.training.checkpoints import Checkpoints, NoSoundCheckpointError
from dropcluster_jax.training.history import read_history
from dropcluster_jax.training.listing import list_runs
from dropcluster_jax.training.loop import NonFiniteError, evaluate, fit
from dropcluster_jax.training.parallel import Parallel
from dropcluster_jax.training.saved import LoadedRun, evaluate_run, load_run
from dropcluster_jax.training.schedules import every, every_epochs, ramp
from dropcluster_jax.training.steps import Steps, TrainState, make_steps, softmax_cross_entropy
from dropcluster_jax.training.tensorboard import TensorBoard

__all__ = [
    "Checkpoints",
    "LoadedRun",
    "NoSoundCheckpointError",
    "NonFiniteError",
    "Parallel",
    "Steps",
    "TensorBoard",
    "TrainState",
    "evaluate",
    "evaluate_run",
    "every",
    "every_epochs",
    "fit",
    "list_runs",
    "load_run",
    "make_steps",
    "ramp",
    "read_history",
    "softmax_cross_entropy",
]
