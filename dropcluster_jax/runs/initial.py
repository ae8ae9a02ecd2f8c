"""Pretrained weights, from which a run starts instead of random ones."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dropcluster_jax.data import DATASETS
from dropcluster_jax.models import ResNet, load_pretrained
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.load import load_run
from dropcluster_jax.training.steps import TrainState


class InitialWeights(NamedTuple):
    """Weights of all parts of a network but the head.

    Attributes:
        variables: The collections "params" and "batch_stats".
        mean_std: Mean and standard deviation of each channel with which the weights were trained, if known.
    """

    variables: Mapping[str, Any]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None

    def put_into(self, state: TrainState) -> TrainState:
        """Returns an initial state with these weights, also as its moving averages, on the devices of the state."""

        def replace(collections: Mapping[str, Any]) -> dict[str, Any]:
            replaced = {}
            for name, modules in collections.items():
                loaded = {
                    module: jax.tree.map(lambda old, new: jax.device_put(new, old.sharding), modules[module], weights)
                    for module, weights in self.variables[name].items()
                }
                replaced[name] = {**modules, **loaded}
            return replaced

        weights = replace({"params": state.params, "batch_stats": state.batch_stats})
        return state._replace(**weights, ema=replace(state.ema) if state.ema else state.ema)


def load_initial(path: str, model: ResNet, channels: int, notify: Callable[[str], None]) -> InitialWeights:
    """Reads the weights of a safetensors file, or of the run in a folder.

    Files with color images are taken to be trained with the mean and standard deviation of ImageNet, as those of
    torchvision and timm are.

    Args:
        path: The file or the run folder.
        model: The network to initialize.
        channels: Number of channels of its images.
        notify: Called with messages about damaged checkpoints.

    Raises:
        ValueError: If the weights are not those of this network.
        FileNotFoundError, CorruptCheckpointError, ImportError: As in `load_run` and `load_pretrained`.
    """
    if not as_path(path).is_dir():
        spec = DATASETS["imagenet2012"]
        variables = load_pretrained(as_path(path), model, channels=channels, head_key=jax.random.key(0))
    else:
        run = load_run(path, notify=notify)
        spec, variables = run.spec, run.variables
    leaves = _without_head(variables)
    images = jax.ShapeDtypeStruct((1, *spec.image_shape[:2], channels), jnp.float32)
    expected = _without_head(jax.eval_shape(model.clone(drop={}).init, jax.random.key(0), images))
    for name in sorted(leaves.keys() | expected.keys()):
        there, here = (jnp.shape(part[name]) if name in part else "missing" for part in (leaves, expected))
        if there != here:
            raise ValueError(
                f"init_from must be the weights of the same network, but {'/'.join(name[1:])} is {there} in {path} and "
                f"{here} in the network"
            )
    mean_std = (spec.mean, spec.std) if len(spec.mean) == channels else None
    return InitialWeights(unflatten_dict(leaves), mean_std)


def _without_head(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    leaves = flatten_dict({name: variables[name] for name in ("params", "batch_stats")})
    return {path: leaf for path, leaf in leaves.items() if path[1] != "head"}
