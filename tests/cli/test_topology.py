"""The dry run of `dropcluster train`, for the present devices and for others."""

import json
import re
import sys
import types

import pytest
from commands import command, run_command
from topologies import needs_libtpu

from dropcluster_jax.runs import aot, dry_run
from dropcluster_jax.training.data_parallel import DataParallel

# A small network on the shapes of ImageNet, whose images are not here.
SMALL = ["train", "imagenet", "--model", "resnet8", "--data.image-size", "16", "--batch-size", "64", "--fake-data"]
SMALL += ["--drop.places", "stage1", "--drop.probe-size", "36", "--dtype", "float32"]
SMALL_DIGITS = ["train", "digits", "--model", "resnet8", "--drop.places", "stage3", "--batch-size", "32"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "shard_map", "pmap"])
def test_dry_run_reports_all_programs_and_writes_nothing(strategy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(*SMALL, "--strategy", strategy, "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["topology"], result["num_devices"], result["strategy"]) == (None, 8, strategy)
    assert result["batch_size"] == 64 and result["flops_per_image"] > 0
    assert result["memory_bytes"] is None and result["estimated_mfu"] is None
    programs = result["programs"]
    # The probe batch is rounded down to a multiple of the number of devices.
    assert [programs[name]["images"] for name in ("train", "update_clusters", "evaluate")] == [64, 32, 64]
    state = 2 * 4 * result["parameters"]  # with the momentum
    batch = 64 // 8 * (16 * 16 * 3 + 4)
    assert programs["train"]["argument_bytes"] == pytest.approx(state + batch, rel=0.1)
    for program in programs.values():
        sizes = [program[f"{name}_bytes"] for name in ("argument", "output", "temporary", "code")]
        assert program["peak_bytes"] == sum(sizes) and program["cycles"] is program["estimated_seconds"] is None
        assert {collective["name"] for collective in program["collectives"]} >= {"all-reduce"}
    text = dry_run.describe(result)
    assert re.search(r"drop_stage1 .*DropCluster", text) and re.search(r"head .*float32\[1,1000\]", text)
    assert f"\npresent devices: 8 x cpu; strategy {strategy}; 64 images per step\n139,640 parameters; " in text
    table = {cells[0]: cells[1:] for cells in (re.split("  +", line) for line in text.splitlines())}
    assert table["per device"] == ["training step", "cluster update", "evaluation"]
    assert table["images"] == ["8", "4", "8"]
    assert all(re.fullmatch(r"[\d.]+ [kMG]B", cell) for cell in table["peak memory"])
    assert re.fullmatch(r"\d+ x, [\d.]+ [kM]B", table["all-reduce"][0])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def compiler(monkeypatch):
    """Replaces compilation by a fixed analysis; the chip has 2 GiB, 2 TFLOP/s and 1 GHz. Returns the calls."""
    monkeypatch.setitem(aot.CHIPS, "cpu", aot.Chip(memory_bytes=2**31, peak_flops=2e12, clock=1e9))
    monkeypatch.setattr(dry_run, "topology_mesh", lambda topology: DataParallel().mesh)
    calls = []

    def compile_for(*arguments, **options):
        calls.append(arguments)
        if len(calls) == compile_for.fails_at:
            raise aot.DoesNotFitError("needs 1024.00 of 2.00 GiB")
        return aot.Analysis("cpu", 8, 1000, 0, 2**20, 500, 3e6, 4e6, 2_000_000, ())

    compile_for.calls, compile_for.fails_at = calls, None
    monkeypatch.setattr(dry_run, "compile_for", compile_for)
    return compile_for


def test_estimates_follow_from_cycles_and_the_properties_of_the_chip(compiler, capsys):
    options = [*SMALL_DIGITS, "--drop.method", "none", "--topology", "here:8"]
    assert command(*options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(compiler.calls) == 2 and set(result["programs"]) == {"train", "evaluate"}  # no clusters to update
    train = result["programs"]["train"]
    assert train["cycles"] == 2_000_000 and train["estimated_seconds"] == pytest.approx(0.002)
    assert result["estimated_images_per_second"] == pytest.approx(32 / 0.002)
    assert result["estimated_mfu"] == pytest.approx(result["flops_per_image"] * 32 / 0.002 / (8 * 2e12))
    assert command(*options) == 0
    output = capsys.readouterr().out
    assert output.startswith("here:8: 8 x cpu; strategy jit; 32 images per step\n")
    assert re.search(r"^fits: 1 MiB of 2 GiB$", output, re.MULTILINE)
    assert re.search(r"^time \(compiler's estimate\) +2 ms +2 ms$", output, re.MULTILINE)
    assert "compiler's estimate: 16,000 images/s over all devices, below 1% of the peak in bfloat16 (MFU)" in output


@pytest.mark.parametrize(
    ("fails_at", "advice"),
    [
        (1, "the training step does not fit .*; try --remat, a larger --grad-accum-steps, or a smaller --batch-size"),
        (2, "the cluster update does not fit .*; try a smaller --drop.probe-size"),
        (3, "the evaluation does not fit .*; try a smaller --batch-size"),
    ],
)
def test_program_that_does_not_fit_is_one_line_with_advice(compiler, capsys, fails_at, advice):
    compiler.fails_at = fails_at
    assert command(*SMALL_DIGITS, "--topology", "here:8") == 1
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    assert re.match(f"dropcluster: {advice}", captured.err) and "needs 1024.00 of 2.00 GiB" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e"], "topology must be a TPU topology, e.g. v5e:4x4, got 'v5e'"),
        (["--topology", "v2:2x2"], 'libtpu is not installed: pip install "jax[tpu]"'),
        (["--json"], "requires --dry-run or --topology"),
        (["--fake-data", "--dry-run", "--batch-size", "60"], "must be a multiple of the 8 devices"),
    ],
)
def test_invalid_options_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert command("train", "imagenet", *arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out and message in captured.err and captured.err.count("\n") == 1


def test_images_are_read_only_for_the_shape_of_an_unknown_dataset(compiler, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    assert command("train", "imagenet", "--topology", "here:8") == 0
    options = ["--model", "resnet8", "--data.image-size", "8", "--data.skip-corrupt", "--batch-size", "8"]
    assert command("train", "digits", "--data.name", photos, *options, "--drop.probe-size", "8", "--dry-run") == 0
    shapes = [(batch["image"].shape, state.params["head"]["bias"].shape) for _, _, state, batch in compiler.calls]
    assert shapes[0] == ((1024, 224, 224, 3), (1000,)) and shapes[-1] == ((8, 8, 8, 3), (2,))


def test_pmap_is_limited_to_one_host(monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "topology_mesh", lambda topology: types.SimpleNamespace(is_multi_process=True))
    assert command(*SMALL_DIGITS, "--strategy", "pmap", "--topology", "v5e:4x4") == 2
    error = capsys.readouterr().err
    assert "got topology v5e:4x4; shard_map runs the same steps" in error and error.count("\n") == 1


@needs_libtpu
@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_dry_run_for_a_tpu(strategy):
    """In a new process without JAX_PLATFORMS, which prints nothing to stderr."""
    options = ["--drop.probe-size", "32", "--strategy", strategy, "--topology", "v5e:2x2"]
    process = run_command(*SMALL_DIGITS, *options, JAX_PLATFORMS=None, XLA_FLAGS=None)
    # JAX's CUDA plugin, if installed, writes to stderr when JAX is imported.
    lines = [line for line in process.stderr.splitlines() if not re.search("cudart_stub|absl::InitializeLog", line)]
    assert not lines and process.returncode == 0, process.stderr
    output = process.stdout
    assert f"v5e:2x2: 4 x TPU v5 lite; strategy {strategy}; 32 images per step" in output
    assert re.search(r"^fits: [\d.]+ MiB of 16 GiB$", output, re.MULTILINE)
    assert re.search(r"compiler's estimate: [\d,]+ images/s over all devices, below 1% of the peak", output)
    assert re.search(r"^cycles \(compiler's estimate\) +[\d.]+ [kM] +[\d.]+ [kM] +[\d.]+ [kM]$", output, re.MULTILINE)
