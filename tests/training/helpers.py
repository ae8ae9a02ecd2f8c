"""A small network, data and comparisons for the tests of training steps."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

import dropcluster_jax as dc
from dropcluster_jax.data import load, make_loader, normalize, random_shift
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.masking.common import Rate
from dropcluster_jax.training import make_steps


class Small(nn.Module):
    """Two convolutions and a head, with a DropCluster layer after the first convolution."""

    clusterer: dc.Clusterer = dc.KMeans(num_clusters=6)
    axis_name: str | None = None
    batch_norm: bool = True
    norm_axis_name: str | None = None
    classes: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False, rate: Rate = 0.0, update_clusters: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv1")(x))
        x = DropCluster(self.clusterer, axis_name=self.axis_name, name="drop")(
            x, rate, deterministic=not train, update_clusters=update_clusters
        )
        x = nn.Conv(8, (3, 3), name="conv2")(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, axis_name=self.norm_axis_name, name="norm")(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(nn.relu(x), axis=(1, 2)))


class Linear(nn.Module):
    """A linear classifier without drop layers."""

    classes: int = 4
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False, rate: Rate = 0.0):
        return nn.Dense(self.classes, param_dtype=self.param_dtype)(x.reshape(len(x), -1))


def separable(key, size=32):
    """Returns a batch of noisy images with one bright quadrant, which is the label."""
    label_key, noise_key = jax.random.split(key)
    label = jax.random.randint(label_key, (size,), 0, 4)
    quadrant = (jnp.arange(6) >= 3).astype(jnp.int32)
    bright = (2 * quadrant[:, None] + quadrant)[None] == label[:, None, None]
    image = bright[..., None] + 0.3 * jax.random.normal(noise_key, (size, 6, 6, 1))
    return {"image": image, "label": label}


def equal(tree, other) -> bool:
    """Whether two trees are equal bit for bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((_data(a) == _data(b)).all()), tree, other)))


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def mesh(num_devices):
    return mesh_of(jax.devices()[:num_devices])


def mesh_of(devices):
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


@functools.cache
def digits():
    return load("digits")


def small_steps(parallel, rate=0.3, sync_batch_norm=True, shift=1):
    """Returns steps of SGD with momentum on shifted digits."""
    spec = digits().spec
    model = Small(
        clusterer=dc.KMeans(num_clusters=8),
        axis_name=parallel.axis_name,
        norm_axis_name=parallel.axis_name if sync_batch_norm else None,
        classes=10,
    )
    return make_steps(
        model,
        optax.sgd(0.1, momentum=0.9),
        rate=rate,
        augment=functools.partial(random_shift, pixels=shift),
        preprocess=lambda images: normalize(images, spec.mean, spec.std),
        axis_name=parallel.axis_name,
    )


def batches(num_batches, batch_size=32):
    """Returns training batches of digits on the host."""
    iterator = make_loader(digits(), batch_size).train()
    return [jax.tree.map(np.asarray, next(iterator)) for _ in range(num_batches)]


def difference(tree, other):
    """Returns the norm of the difference relative to the norm of `other`."""
    flat, flat_other = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (tree, other)
    )
    return np.linalg.norm(flat - flat_other) / np.linalg.norm(flat_other)


def update(before, after):
    """Returns the change of parameters in float64."""
    return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a, np.float64), before, after)


def gradient(before, after):
    """Returns the gradient of a momentum step between two states: the difference of the traces, decayed by 0.9."""
    return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - 0.9 * np.asarray(a), before.opt_state, after.opt_state)


def on_host(state):
    """Returns a copy of the state on the host, with the key as plain data."""
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def placed(parallel, host_state):
    """Returns a replicated copy of a state of `on_host` on the devices of all processes."""
    state = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(parallel.replicated, np.asarray(leaf)), host_state
    )
    return state._replace(key=jax.random.wrap_key_data(state.key))
