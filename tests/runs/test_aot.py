"""Functions compile for devices that are not present. `make test-tpu` installs the compiler for TPUs."""

import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from topologies import needs_cuda_plugin, needs_libtpu

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


@pytest.mark.bad_input
@pytest.mark.parametrize("topology", ["", "v5e", "v5e-16", "v5e:", "v5e:4x", "v5e:4*4", "h100"])
def test_malformed_topology_is_an_error(topology):
    with pytest.raises(
        ValueError,
        match=rf"topology must be a TPU topology, e\.g\. v5e:4x4, .*, got '{topology}'".replace("*4'", r"\*4'"),
    ):
        topology_mesh(topology)


@pytest.mark.bad_input
@pytest.mark.parametrize("topology", ["h100:0", "a100:9", "h100:2x4"])
def test_invalid_number_of_gpus_is_an_error(topology):
    with pytest.raises(ValueError, match=f"topology must have 1 to 8 GPUs or a multiple of 8, got '{topology}'"):
        topology_mesh(topology)


def test_missing_compilers_are_errors_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setitem(sys.modules, "jax_plugins.xla_cuda12", None)
    with pytest.raises(ImportError, match=r'libtpu is not installed: pip install "dropcluster-jax\[tpu\]"'):
        topology_mesh("v3:2x2")
    with pytest.raises(ImportError, match=r'plugin is not installed: pip install "dropcluster-jax\[cuda\]"'):
        topology_mesh("h100:3")


def test_analysis_of_a_program_for_present_devices(monkeypatch):
    """The devices of a topology may be present; this needs no other compiler."""
    mesh = DataParallel().mesh
    monkeypatch.setattr(aot, "topology_mesh", lambda topology: mesh)
    setting = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    x = jax.ShapeDtypeStruct((16 * mesh.size, 32), jnp.float32)
    w = jax.ShapeDtypeStruct((32, 8), jnp.float32)
    analysis = compile_for("here", lambda x, w: (jnp.tanh(x @ w).mean(0), w), x, w, batch_argnums=0, donate_argnums=1)
    assert analysis.num_devices == mesh.size and analysis.device_kind == "cpu"
    assert analysis.argument_bytes == 4 * (16 * 32 + 32 * 8)
    assert analysis.output_bytes <= 4 * 8 + 100  # the donated array is reused; the rest is a table of pointers
    assert analysis.collectives == (Collective("all-reduce", 1, 4 * 8),)
    assert analysis.flops >= 2 * 16 * 32 * 8 and analysis.bytes_accessed > analysis.argument_bytes
    assert (analysis.cycles, analysis.chip, analysis.fits, analysis.estimated_seconds) == (None,) * 4
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == setting


@pytest.mark.parametrize(
    ("message", "phrase"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (412.01G) "
            "exceeds available HBM (15.75G).",
            "needs 412.01 of 15.75 GiB",
        ),
        ("RESOURCE_EXHAUSTED: Used 900.5M of 512.0M hbm.\nTotal: ...", "needs 0.88 of 0.50 GiB"),
        ("RESOURCE_EXHAUSTED: Too large.\nDetails", "RESOURCE_EXHAUSTED: Too large."),
    ],
)
def test_exhausted_memory_is_described_in_one_phrase(message, phrase):
    assert aot._describe_exhausted_memory(message) == phrase


@needs_libtpu
def test_small_step_compiles_for_a_tpu():
    steps = make_steps(Net(), optax.sgd(0.1), rate=0.1)
    state = jax.eval_shape(steps.init, jax.random.key(0), BATCH)
    analysis = compile_for("v5e:2x2", steps.train, state, BATCH, batch_argnums=1, donate_argnums=0)
    assert (analysis.topology, analysis.device_kind, analysis.num_devices) == ("v5e:2x2", "TPU v5 lite", 4)
    assert analysis.fits and analysis.peak_bytes < 2**30
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
    assert analysis.fits and analysis.chip.clock
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

    few, many = repeated(20), repeated(200)
    assert few.has_loops and many.has_loops
    assert many.cycles / few.cycles == pytest.approx(10, rel=0.1)


@needs_libtpu
def test_program_that_does_not_fit_is_an_error():
    x = jax.ShapeDtypeStruct((10 * 2**10, 2**20), jnp.int8)
    with pytest.raises(DoesNotFitError, match=r"needs 20\.00 of 15\.75 GiB"):
        compile_for("v5e:2x2", lambda x: x + 1, x)


@needs_libtpu
@pytest.mark.bad_input
def test_unknown_tpus_are_errors():
    with pytest.raises(ValueError, match="topology must be one that libtpu knows, got 'v99:2x2': INVALID_ARGUMENT"):
        topology_mesh("v99:2x2")


@needs_cuda_plugin
@pytest.mark.parametrize(
    ("topology", "kind", "num_devices"),
    [("h100:8", "NVIDIA H100 80GB HBM3", 8), ("a100:16", "NVIDIA A100-SXM4-80GB", 16)],
)
def test_small_step_compiles_for_gpus(topology, kind, num_devices):
    steps = make_steps(Net(), optax.sgd(0.1), rate=0.1)
    state = jax.eval_shape(steps.init, jax.random.key(0), BATCH)
    analysis = compile_for(topology, steps.train, state, BATCH, batch_argnums=1, donate_argnums=0)
    assert (analysis.device_kind, analysis.num_devices) == (kind, num_devices)
    assert analysis.fits and analysis.temporary_bytes > 0 and analysis.bytes_accessed > analysis.argument_bytes
    assert [collective.name for collective in analysis.collectives] == ["all-reduce"]
    assert (analysis.flops, analysis.cycles, analysis.estimated_seconds) == (None, None, None)
