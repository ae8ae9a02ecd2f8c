"""Functions compile for devices that this machine does not have. `make test-tpu` installs the compiler for TPUs."""

import re
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from topologies import needs_libtpu

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.runs import aot
from dropcluster_jax.runs.aot import DoesNotFitError, compile_for, topology_mesh
from dropcluster_jax.runs.hlo import Collective
from dropcluster_jax.training import make_steps
from dropcluster_jax.training.data_parallel import DataParallel

IMAGES = jax.ShapeDtypeStruct((64, 8, 8, 3), jnp.float32)
BATCH = {"image": IMAGES, "label": jax.ShapeDtypeStruct((64,), jnp.int32)}


class Net(nn.Module):
    """One convolution with a drop layer."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, rate=0.0, update_clusters=False):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = DropCluster(dc.KMeans(cluster_size=4), axis_name=self.axis_name)(x, rate, not train, update_clusters)
        return nn.Dense(10)(x.mean((1, 2)))


@pytest.mark.parametrize("topology", ["", "v5e", "v5e:", "v5e:4x", "v5e:4*4"])
def test_malformed_topologies_are_errors(topology):
    with pytest.raises(ValueError, match=f"topology must be a TPU topology.*, got {re.escape(repr(topology))}"):
        topology_mesh(topology)


def test_missing_compiler_is_an_error_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ImportError, match=r'pip install "jax\[tpu\]"'):
        topology_mesh("v3:2x2")


def test_analysis_of_a_program_for_present_devices(monkeypatch):
    mesh = DataParallel().mesh
    x = jax.ShapeDtypeStruct((16 * mesh.size, 32), jnp.float32)
    w = jax.ShapeDtypeStruct((32, 8), jnp.float32)

    def compiled():
        return compile_for(mesh, lambda x, w: (jnp.tanh(x @ w).mean(0), w), x, w, batch_argnums=0, donate_argnums=1)

    analysis = compiled()
    assert analysis.num_devices == mesh.size and analysis.device_kind == "cpu"
    assert analysis.argument_bytes == 4 * (16 * 32 + 32 * 8)
    assert analysis.output_bytes <= 4 * 8 + 100  # the donated array is reused; the rest is a table of pointers
    assert analysis.collectives == (Collective("all-reduce", 1, 4 * 8),)
    assert analysis.flops >= 2 * 16 * 32 * 8 and analysis.bytes_accessed > analysis.argument_bytes
    assert (analysis.cycles, analysis.chip, analysis.estimated_seconds) == (None, None, None)
    monkeypatch.setitem(aot.CHIPS, "cpu", aot.Chip(analysis.peak_bytes - 1))
    with pytest.raises(DoesNotFitError, match=r"needs 0\.00 of 0\.00 GiB"):
        compiled()


@needs_libtpu
def test_small_step_compiles_for_a_tpu():
    steps = make_steps(Net(), optax.sgd(0.1), rate=0.1)
    state = jax.eval_shape(steps.init, jax.random.key(0), BATCH)
    analysis = compile_for("v5e:2x2", steps.train, state, BATCH, batch_argnums=1, donate_argnums=0)
    assert (analysis.device_kind, analysis.num_devices) == ("TPU v5 lite", 4) and analysis.peak_bytes < 2**30
    assert analysis.argument_bytes >= 4 * 64 // 4 * 8 * 8 * 3 and analysis.flops > 0 and analysis.bytes_accessed > 0
    assert [collective.name for collective in analysis.collectives] == ["all-reduce"]
    assert analysis.estimated_seconds == analysis.cycles / 1.5e9 > 0


@needs_libtpu
def test_shardings_of_arguments_are_kept():
    parallel = DataParallel("shard_map", mesh=topology_mesh("v5e:2x2"))
    steps = make_steps(Net(parallel.axis_name), optax.sgd(0.1), rate=0.1, axis_name=parallel.axis_name)
    state = parallel.abstract_state(steps, jax.random.key(0), BATCH)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.batch_sharding), BATCH)
    analysis = compile_for("v5e:2x2", parallel.compile(steps).evaluate, state, batch)
    sharded = compile_for("v5e:2x2", parallel.compile(steps).evaluate, state, BATCH, batch_argnums=1)
    assert analysis == sharded


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "kind", "num_devices"),
    [
        ("v4:2x2x1", "TPU v4", 4),
        ("v5e:1x1", "TPU v5 lite", 1),
        ("v5e:4x4", "TPU v5 lite", 16),
        ("v5p:2x2x1", "TPU v5", 4),
        ("V6E:2x4", "TPU v6 lite", 8),
    ],
)
def test_topologies_have_the_devices_that_jax_sees_on_the_machine(topology, kind, num_devices):
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
    analysis = compile_for(topology, lambda x: x @ x, x)
    assert (analysis.device_kind, analysis.num_devices) == (kind, num_devices)
    # The matrix units determine the time of a large product, so the peak and the clock agree with the estimate.
    large = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
    seconds = compile_for(topology, lambda x: x @ x, large).estimated_seconds
    assert 0.6 < 2 * 8192**3 / seconds / analysis.chip.peak_flops < 1.05


@needs_libtpu
def test_iterations_of_a_scan_are_counted():
    def repeated(length):
        step = lambda x, _: (jnp.tanh(x @ x), None)  # noqa: E731
        x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
        return compile_for("v5e:2x2", lambda x: jax.lax.scan(step, x, length=length)[0], x)

    assert repeated(200).cycles / repeated(20).cycles == pytest.approx(10, rel=0.1)


@needs_libtpu
def test_unknown_tpus_and_programs_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="topology must be one that libtpu supports, got 'v99:2x2': INVALID_ARGUMENT"):
        topology_mesh("v99:2x2")
    setting = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    x = jax.ShapeDtypeStruct((10 * 2**10, 2**20), jnp.int8)
    with pytest.raises(DoesNotFitError, match=r"needs 20\.00 of 15\.75 GiB"):
        compile_for("v5e:2x2", lambda x: x + 1, x)
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == setting
