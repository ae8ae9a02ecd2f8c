"""The dry run of `dropcluster train` for devices that are not present."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types

import pytest
from commands import command
from topologies import needs_cuda_plugin, needs_libtpu

from dropcluster_jax.runs import PRESETS, aot, dry_run
from dropcluster_jax.training.data_parallel import DataParallel

# A small network on the shapes of ImageNet, whose images are not here.
SMALL = ["train", "imagenet", "--model", "resnet8", "--data.image-size", "16", "--batch-size", "64"]
SMALL += ["--drop.places", "stage1", "--drop.probe-size", "36", "--dtype", "float32"]
SMALL_DIGITS = ["train", "digits", "--model", "resnet8", "--drop.places", "stage3", "--batch-size", "32"]


@pytest.fixture
def present_devices(monkeypatch, tmp_path):
    """Lets any topology stand for the present devices, so that no other compiler is needed."""
    mesh = DataParallel().mesh
    for module in (aot, dry_run):
        monkeypatch.setattr(module, "topology_mesh", lambda topology: mesh)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    return mesh


@pytest.mark.slow
def test_text_contains_the_memory_of_all_programs_and_writes_nothing(present_devices, tmp_path, capsys):
    assert command(*SMALL, "--topology", "here:8") == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "here:8: 8 x cpu; strategy jit; 64 images per step"
    assert re.fullmatch(r"1\d\d,\d{3} parameters; [\d.]+ MFLOPs per training image", lines[1])
    table = {cells[0]: cells[1:] for cells in (re.split("  +", line) for line in lines)}
    assert table["per device"] == ["training step", "cluster update", "evaluation"]
    assert table["images"] == ["8", "4", "8"]
    assert all(re.fullmatch(r"[\d.]+ [kMG]B", cell) for cell in table["peak memory"])
    assert re.fullmatch(r"\d+ x, [\d.]+ [kM]B", table["all-reduce"][0])
    assert re.fullmatch(r"peak memory: \d\.\d GiB; the memory of a cpu is unknown", lines[-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "shard_map", "pmap"])
def test_json_contains_all_values(present_devices, capsys, strategy):
    assert command(*SMALL, "--strategy", strategy, "--topology", "here:8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["topology"], result["num_devices"], result["strategy"]) == ("here:8", 8, strategy)
    assert result["batch_size"] == 64 and result["flops_per_image"] > 0
    programs = result["programs"]
    assert {name: program["images"] for name, program in programs.items()} == {
        "train": 64,
        "update_clusters": 32,  # 36, rounded down to a multiple of the number of devices
        "evaluate": 64,
    }
    state = 2 * 4 * result["parameters"]  # with the momentum
    batch = 64 // 8 * (16 * 16 * 3 + 4)
    assert programs["train"]["argument_bytes"] == pytest.approx(state + batch, rel=0.1)
    for program in programs.values():
        sizes = [program[f"{name}_bytes"] for name in ("argument", "output", "temporary", "code")]
        assert program["peak_bytes"] == sum(sizes)
        assert {collective["name"] for collective in program["collectives"]} >= {"all-reduce"}
        assert program["fits"] is None and set(program["compiler_estimate"].values()) == {None}
    assert result["memory_bytes"] is None


def stub_compiler(monkeypatch, **changes):
    """Replaces the compiler by a fixed analysis; the chip has 2 GiB, 2 TFLOP/s and 1 GHz. Returns the calls."""
    monkeypatch.setitem(aot.CHIPS, "cpu", aot.Chip(memory_bytes=2**31, peak_flops=2e12, clock=1e9))
    analysis = aot.Analysis("here:8", "cpu", 8, 1000, 0, 2000, 500, 3e6, 4e6, 2_000_000, (), False)
    calls = []

    def compile_for(*arguments, **options):
        calls.append(arguments)
        return dataclasses.replace(analysis, **{name: values[len(calls) - 1] for name, values in changes.items()})

    monkeypatch.setattr(dry_run, "compile_for", compile_for)
    return calls


def test_estimates_follow_from_cycles_and_the_properties_of_the_chip(present_devices, monkeypatch, capsys):
    calls = stub_compiler(monkeypatch)
    assert command(*SMALL_DIGITS, "--drop.method", "none", "--topology", "here:8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(calls) == 2 and set(result["programs"]) == {"train", "evaluate"}  # there are no clusters to update
    train = result["programs"]["train"]
    assert train["fits"]
    assert train["compiler_estimate"] == {
        "cycles": 2_000_000,
        "seconds": pytest.approx(0.002),
        "images_per_second": pytest.approx(32 / 0.002),
        "mfu": pytest.approx(result["flops_per_image"] * 32 / 0.002 / (8 * 2e12)),
    }
    assert command(*SMALL_DIGITS, "--drop.method", "none", "--topology", "here:8") == 0
    output = capsys.readouterr().out
    assert re.search(r"^fits: 0\.0 of 2 GiB$", output, re.MULTILINE)
    assert re.search(r"^time \(compiler's estimate\) +2 ms +2 ms$", output, re.MULTILINE)
    assert re.search(r"compiler's estimate: 16,000 images/s over all devices, \d+% of the peak .*\(MFU\)", output)


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ([2**40], "the training step does not fit .*; try --remat, a larger --grad-accum-steps, or a smaller --batch"),
        ([1, 2**40], "the cluster update does not fit .*; try a smaller --drop.probe-size"),
        ([1, 1, 2**40], "the evaluation does not fit .*; try a smaller --batch-size"),
    ],
)
def test_program_that_does_not_fit_is_one_line_with_advice(present_devices, monkeypatch, capsys, sizes, advice):
    calls = stub_compiler(monkeypatch, temporary_bytes=sizes)
    assert command(*SMALL_DIGITS, "--topology", "here:8") == 1
    captured = capsys.readouterr()
    assert len(calls) == len(sizes) and not captured.out and captured.err.count("\n") == 1
    assert re.match(f"dropcluster: {advice}", captured.err) and "needs 1024.00 of 2.00 GiB" in captured.err


def test_invalid_topologies_are_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    for arguments, message in (
        (["--topology", "v5e"], "topology must be a TPU topology, e.g. v5e:4x4, or a number of GPUs"),
        (["--topology", "h100:9"], "topology must have 1 to 8 GPUs or a multiple of 8"),
        (["--topology", "v2:2x2"], 'libtpu is not installed: pip install "dropcluster-jax[tpu]"'),
        (["--json"], "json requires --topology"),
    ):
        assert command("train", "imagenet", *arguments) == 2
        captured = capsys.readouterr()
        assert not captured.out and message in captured.err and captured.err.count("\n") == 1


def test_batch_must_be_divisible_by_the_number_of_devices(present_devices, capsys):
    assert command(*SMALL, "--batch-size", "60", "--topology", "here:8") == 2
    assert "batch_size must be a multiple of the 8 devices that batches are sharded over, got 60" in (
        capsys.readouterr().err
    )


def test_shape_of_other_datasets_is_read_from_their_images(present_devices, photos, monkeypatch, capsys):
    calls = stub_compiler(monkeypatch)
    options = ["--model", "resnet8", "--data.image-size", "8", "--data.skip-corrupt", "--batch-size", "8"]
    options += ["--drop.probe-size", "8", "--topology", "here:8"]
    assert command("train", "digits", "--data.name", photos, *options) == 0
    _, _, state, batch = calls[0]
    assert batch["image"].shape == (8, 8, 8, 3) and state.params["head"]["bias"].shape == (2,)


def test_pmap_is_limited_to_one_host(monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "topology_mesh", lambda topology: types.SimpleNamespace(is_multi_process=True))
    assert command(*SMALL_DIGITS, "--strategy", "pmap", "--topology", "v5e:4x4") == 2
    error = capsys.readouterr().err
    assert "use --strategy shard_map, which runs the same steps" in error and error.count("\n") == 1


def test_presets_need_no_dataset():
    _, config = PRESETS["imagenet"]
    spec = dry_run._spec(config)
    assert spec.image_shape == (224, 224, 3) and spec.num_classes == 1000 and spec.encoded
    assert not dry_run._spec(dataclasses.replace(config, fake_data=True)).encoded


def run_quietly(*arguments):
    """Runs the command in a new process, without JAX_PLATFORMS, and checks that it prints nothing to stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    process = subprocess.run(
        [sys.executable, "-c", "from dropcluster_jax.cli import main; main()", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # JAX's CUDA plugin, if installed, writes to stderr when JAX is imported.
    lines = [line for line in process.stderr.splitlines() if not re.search("cudart_stub|absl::InitializeLog", line)]
    assert not lines and process.returncode == 0, process.stderr
    return process.stdout


@needs_libtpu
@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_dry_run_for_a_tpu(strategy):
    output = run_quietly(*SMALL_DIGITS, "--drop.probe-size", "32", "--strategy", strategy, "--topology", "v5e:2x2")
    assert f"v5e:2x2: 4 x TPU v5 lite; strategy {strategy}; 32 images per step" in output
    assert "fits: 0.0 of 16 GiB" in output
    assert re.search(r"compiler's estimate: [\d,]+ images/s over all devices, \d+% of the peak", output)
    assert re.search(r"^cycles \(compiler's estimate\) +[\d.]+ [kM] +[\d.]+ [kM] +[\d.]+ [kM]$", output, re.MULTILINE)


@needs_libtpu
def test_batch_that_does_not_fit_a_tpu(capsys):
    assert command(*SMALL_DIGITS, "--drop.method", "none", "--batch-size", str(2**25), "--topology", "v5e:2x2") == 1
    assert re.fullmatch(
        r"dropcluster: the training step does not fit into the memory of a device of v5e:2x2: needs [\d.]+ of 15\.75 "
        r"GiB; try --remat, a larger --grad-accum-steps, or a smaller --batch-size\n",
        capsys.readouterr().err,
    )


@needs_cuda_plugin
def test_dry_run_for_gpus(capsys):
    assert command(*SMALL_DIGITS, "--topology", "h100:8") == 0
    output = capsys.readouterr().out
    assert "h100:8: 8 x NVIDIA H100 80GB HBM3" in output and "fits: 0.0 of 79 GiB" in output
    assert "estimate" not in output and "FLOPs  " not in output
