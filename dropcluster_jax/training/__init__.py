"""Training: pure steps, and the loop that calls them.

`make_steps` needs JAX, Flax and Optax alone, and so does `fit`, fed by any iterable of batches. `run` is what
`dropcluster train` does: from a configuration to a folder with results.
"""

from dropcluster_jax.training.checkpoints import Checkpoints, NoSoundCheckpointError
from dropcluster_jax.training.loop import NonFiniteError, evaluate, fit
from dropcluster_jax.training.parallel import Parallel
from dropcluster_jax.training.saved import LoadedRun, load_run
from dropcluster_jax.training.schedules import every, every_epochs, ramp
from dropcluster_jax.training.steps import Steps, TrainState, make_steps, softmax_cross_entropy

__all__ = [
    "Checkpoints",
    "LoadedRun",
    "NoSoundCheckpointError",
    "NonFiniteError",
    "Parallel",
    "Steps",
    "TrainState",
    "evaluate",
    "every",
    "every_epochs",
    "fit",
    "load_run",
    "make_steps",
    "ramp",
    "softmax_cross_entropy",
]
