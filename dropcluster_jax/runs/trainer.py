"""A training run from its configuration to its results.

A run that was stopped or killed resumes from its latest checkpoint, with bit-identical results. With multiple
processes, all call the same functions; except for its part of a checkpoint, only the first one writes files.
"""

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from etils import epath

from dropcluster_jax import __version__, viz
from dropcluster_jax.data import BatchIterator, Dataset, DatasetSpec, Loader, normalize
from dropcluster_jax.data.opening import open_data
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import build, distributed, figures
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.initial import InitialWeights, load_initial
from dropcluster_jax.runs.log import RunLog
from dropcluster_jax.runs.preemption import Preemption
from dropcluster_jax.runs.tensorboard import require_tensorboard
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.loop import LogEntry, fit
from dropcluster_jax.training.schedules import every
from dropcluster_jax.training.steps import Batch, Steps, TrainState


class Run(NamedTuple):
    """The validated parts of a run.

    Attributes:
        config: The configuration.
        num_steps: Number of optimizer steps.
        dataset: The dataset.
        loader: Its loader.
        model: The network.
        steps: The pure steps.
        parallel: The devices and how steps run on them.
        initial: Pretrained weights to start from, if any.
    """

    config: TrainConfig
    num_steps: int
    dataset: Dataset
    loader: Loader
    model: ResNet
    steps: Steps
    parallel: DataParallel
    initial: InitialWeights | None = None

    def abstract_state(self) -> TrainState:
        """Returns the shapes, types and shardings of the training state."""
        return build.abstract_state(self.config, self.dataset.spec, self.steps, self.parallel)


class Stopped(Exception):
    """A run was stopped by a signal; `checkpoint` is the step from which it can resume, if any."""

    def __init__(self, name: str, status: int, step: int, checkpoint: int | None) -> None:
        super().__init__(f"stopped by {name} after step {step}")
        self.name, self.status, self.step, self.checkpoint = name, status, step, checkpoint


def train(
    config: TrainConfig,
    *,
    restart: bool = False,
    log: Callable[[LogEntry], None] = lambda entry: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains a network, from the start or from the latest checkpoint, and writes the results to the run folder.

    A finished run is not repeated.

    Args:
        config: The run. If it has no output folder, a new one is created under `runs/`.
        restart: Whether to remove an existing run in the output folder first.
        log: Called with each log entry; see `fit`.
        notify: Called with warnings, and with messages about checkpoints and figures.

    Returns:
        The content of `summary.json`: `eval_accuracy` (in [0, 1]) and `eval_loss` after the last step, `steps`,
        `nonfinite_steps`, `parameters`, `seconds`, `skipped` (corrupt images that were left out) and `clusters`.

    Raises:
        ValueError, TypeError: If a value is invalid; the message names it.
        FileNotFoundError: If the dataset does not exist.
        FileExistsError: If the output folder contains anything other than this run.
        RunFolderError: If the folder cannot be created, or another process is writing to it.
        ImportError: If a required extra is not installed.
        Stopped: If the process received SIGTERM or SIGINT; a checkpoint was written.
        NonFiniteError: If the loss or a gradient was not finite.
        CorruptCheckpointError: If the folder has checkpoints, but none is intact.
        CheckpointMismatchError: If the latest checkpoint does not fit the configuration.
        OSError: If results cannot be written.

    Example:
        >>> from dropcluster_jax.runs import DropConfig
        >>> out = pathlib.Path(tempfile.mkdtemp(), "run")
        >>> config = TrainConfig(model="resnet8", steps=8, batch_size=32, drop=DropConfig("none"), out=out)
        >>> summary = train(config, notify=lambda message: None)
        >>> summary["steps"], 0 <= summary["eval_accuracy"] <= 1
        (8, True)
    """
    run = prepare(config, notify)
    return execute(run, config.out or run_folder.new_folder(config), restart=restart, log=log, notify=notify)


def prepare(config: TrainConfig, notify: Callable[[str], None] = lambda message: None) -> Run:
    """Builds and validates the parts of a run, so that errors surface before anything is written; see `train`."""
    if config.out is None and jax.process_count() > 1:
        raise ValueError("out is required with multiple processes, and must be a folder that all of them can write to")
    if config.tensorboard:
        require_tensorboard()
    parallel = DataParallel(config.strategy, shard_optimizer=config.shard_optimizer)
    dataset, loader = open_data(
        config.data,
        config.batch_size,
        config.seed,
        random_crop=config.augment.resized_crop,
        flip=config.augment.flip,
        fake=config.fake_data,
        sharding=parallel.batch_sharding,
    )
    initial = None
    if config.init_from is not None:
        model = build.make_model(config, dataset.spec)
        initial = load_initial(config.init_from, model, dataset.spec.image_shape[-1], notify)
        dataset = dataclasses.replace(dataset, mean_std=initial.mean_std or dataset.mean_std)
    spec = dataset.spec
    build.check_probe_size(config, spec, parallel.mesh.size)
    data = dataclasses.replace(config.data, seed=0, validation_seed=0)
    without_seeds = dataclasses.replace(config, seed=0, out=None, data=data)
    model, steps, parallel, state = _trace(without_seeds, spec, parallel)
    if spec.num_classes == 1:
        notify(f"{config.data.name} has a single class, {spec.classes[0]!r}, so that any network is always right")
    if config.drop.rate:
        _warn_of_single_clusters(config, model, state, notify)
    return Run(config, build.num_steps(config, spec), dataset, loader, model, steps, parallel, initial)


@functools.lru_cache(maxsize=1)
def _trace(
    config: TrainConfig, spec: DatasetSpec, parallel: DataParallel
) -> tuple[ResNet, Steps, DataParallel, TrainState]:
    """Returns the network, its steps, the devices that hold their compiled programs, and the shapes of the state.

    Cached, so that consecutive runs in a process that differ only in their seeds compile once. Tracing surfaces shape
    errors before anything is written.
    """
    model = build.make_model(config, spec, parallel.axis_name)
    steps = build.make_run_steps(config, model, spec, parallel.axis_name)
    batch = build.abstract_batch(spec, config.batch_size)
    state = jax.eval_shape(steps.init, jax.random.key(0), batch)
    # `pmap` cannot be traced for the devices of several processes; `shard_map` has the same axis.
    traced = dataclasses.replace(parallel, strategy="shard_map") if parallel.strategy == "pmap" else parallel
    jax.eval_shape(traced.compile(steps).train, state, batch)
    return model, steps, parallel, state


def _warn_of_single_clusters(
    config: TrainConfig, model: ResNet, state: TrainState, notify: Callable[[str], None]
) -> None:
    clusters = cluster_states(state.clusters)
    for place, name in model.drop_layer_names.items():
        if name in clusters and len(clusters[name].sizes) == 1:
            shape = "x".join(map(str, clusters[name].labels.shape[:-1]))
            size = config.drop.cluster_size
            notify(f"{place} has a single cluster, its whole map of {shape}: drop.cluster_size {size:g} is too large")


def execute(
    run: Run,
    folder: epath.Path,
    *,
    restart: bool = False,
    log: Callable[[LogEntry], None] = lambda entry: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains in a folder, which is locked until the function returns; see `train`."""
    start, config = time.perf_counter(), run.config
    checkpointer = Checkpointer(folder / run_folder.CHECKPOINTS, config.checkpoint.keep, notify)
    with contextlib.ExitStack() as stack:
        summary = _check_out(run, folder, restart, stack, notify)
        if summary is not None:
            notify(f"{folder} already contains this run, finished; pass a different out to train again")
            return summary
        preemption = stack.enter_context(Preemption())
        stack.callback(checkpointer.close)
        batches = stack.enter_context(contextlib.closing(run.loader.train()))
        state, progress = _restore_or_init(run, checkpointer, batches, notify)
        names = [run_folder.METRICS, *([run_folder.CLUSTERS] if state.clusters else [])]
        first = jax.process_index() == 0
        run_log = RunLog(
            folder, names if first else [], progress["log_entries"], tensorboard=config.tensorboard and first
        )
        stack.enter_context(run_log)
        profile = stack.enter_context(_profile_folder(run, folder))
        previous_seconds = progress["seconds"]

        def log_entry(entry: LogEntry) -> None:
            if entry["event"] == "clusters":
                layers = {place: entry["layers"][name] for place, name in run.model.drop_layer_names.items()}
                entry = {**entry, "layers": layers}
            elif entry["event"] == "eval":
                progress["eval"] = entry
            run_log.log(entry)
            log(entry)

        def log_clusters(state: TrainState) -> None:
            run_log.log_clusters(int(state.step), figures.clusters_by_place(run.model, state.clusters))

        def save(state: TrainState, *, accuracy: float | None, nonfinite_steps: int) -> None:
            progress["nonfinite_steps"] = nonfinite_steps
            progress["batches"] = batches.get_state()
            progress["log_entries"] = run_log.write()  # before the checkpoint that refers to it
            progress["seconds"] = round(previous_seconds + time.perf_counter() - start, 1)
            checkpointer.save(state, progress, accuracy if config.data.evaluate_on == "validation" else None)

        if state.clusters and not progress["log_entries"]:
            log_clusters(state)  # the initial grid
        epoch = build.steps_per_epoch(config, run.dataset.spec)
        at_end_only = config.fake_data or not config.evaluate_every_epochs
        state = fit(
            run.steps,
            state,
            batches,
            num_steps=run.num_steps,
            probe=functools.partial(run.loader.probe, config.drop.probe_size),
            update_clusters_when=every(
                config.drop.update_interval if state.clusters else 0, round(config.drop.ramp_start * run.num_steps)
            ),
            eval_batches=run.loader.test,
            evaluate_every=run.num_steps if at_end_only else max(1, round(config.evaluate_every_epochs * epoch)),
            on_metrics=log_entry,
            on_clusters=log_clusters,
            parallel=run.parallel,
            save=save,
            save_every=config.checkpoint.every,
            stop=preemption,
            max_nonfinite_steps=config.max_nonfinite_steps,
            nonfinite_steps=progress["nonfinite_steps"],
            profile=profile,
        )
        saved, step = checkpointer.wait(), int(jax.device_get(state.step))
        if step < run.num_steps:
            raise Stopped(preemption.name, preemption.status, step, saved[-1] if saved else None)
        if step not in saved or checkpointer.restore(run.abstract_state(), step=step, move_damaged=False) is None:
            raise OSError(f"the checkpoint of the last step, {step}, could not be written")
        summary = _summarize(run, state, progress)
        probe = run.loader.probe(config.drop.probe_size, 0)  # in all processes
        # The others wait: the first process is terminated soon after any of them has exited.
        distributed.in_first_process(lambda: _write_results(run, folder, state, summary, probe, notify), OSError)
        return summary


def _check_out(
    run: Run, folder: epath.Path, restart: bool, stack: contextlib.ExitStack, notify: Callable[[str], None]
) -> dict[str, Any] | None:
    """Locks the folder until `stack` closes, and returns the summary of a finished run, or writes `config.json`.

    All of that in the first process, on behalf of all.
    """

    def check_out() -> dict[str, Any] | None:
        stack.enter_context(run_folder.lock(folder, notify))
        if restart:
            run_folder.clear(folder)
        elif summary := run_folder.check_out(folder, run.config, run.dataset.spec):
            return summary
        run_folder.write_config(folder, run.config, run.dataset.spec, __version__)
        return None

    return distributed.in_first_process(check_out, run_folder.RunFolderError)


def _restore_or_init(
    run: Run, checkpointer: Checkpointer, batches: BatchIterator, notify: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state, and the totals that checkpoints carry over, of the latest checkpoint or of a new run."""
    restored = checkpointer.restore(run.abstract_state())
    if restored is None:
        probe = run.loader.probe(run.config.drop.probe_size, 0)
        steps = run.parallel.compile(run.steps)
        state = steps.init(jax.random.key(run.config.seed), probe)
        if run.initial is not None:
            state = run.initial.put_into(state)
            if state.clusters:  # of the pretrained features
                state = steps.update_clusters(state, probe)
        return state, {"seconds": 0, "nonfinite_steps": 0, "log_entries": {}}
    batches.set_state(restored.metadata["batches"])
    notify(f"resuming from the checkpoint of step {int(restored.state.step)}")
    saved, default = (jax.random.key_impl(key) for key in (restored.state.key, jax.random.key(0)))
    if saved != default:
        notify(f"the run keeps its PRNG implementation, {saved}; JAX's default is now {default}")
    return restored.state, restored.metadata


@contextlib.contextmanager
def _profile_folder(run: Run, folder: epath.Path) -> Iterator[pathlib.Path | None]:
    """Yields a local folder for a profile, which is copied to the run folder at the end; None without a profile."""
    if not run.config.profile or jax.process_index() != 0:
        yield None
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = pathlib.Path(temporary)
        yield local
        for path in filter(pathlib.Path.is_file, local.rglob("*")):
            run_folder.write_file(folder / run_folder.PROFILE / path.relative_to(local), path.read_bytes())


def _summarize(run: Run, state: TrainState, progress: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `summary.json`."""
    evaluation = {name: value for name, value in progress["eval"].items() if name not in ("event", "step", "count")}
    return {
        **{f"eval_{name}": value for name, value in evaluation.items()},
        "steps": run.num_steps,
        "nonfinite_steps": progress["nonfinite_steps"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": progress["seconds"],
        "skipped": list(run.dataset.skipped),
        "clusters": figures.summarize_clusters(run.model, state.clusters),
    }


def _write_results(
    run: Run,
    folder: epath.Path,
    state: TrainState,
    summary: dict[str, Any],
    probe: Batch,
    notify: Callable[[str], None],
) -> None:
    """Writes `summary.json`, then `clusters.png`."""
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    if not state.clusters:
        return
    title = f"Learned clusters: {run.config.model} on {run.config.data.name}, step {run.num_steps}"
    try:
        images = normalize(distributed.addressable(probe["image"]), run.dataset.spec.mean, run.dataset.spec.std)
        drawn = figures.clusters_and_inputs(run.model, jax.device_get(state.variables()), images)
        figures.save_figure(viz.cluster_figure(drawn, title=title), folder / run_folder.CLUSTERS_FIGURE)
    except (ImportError, OSError, ValueError, RuntimeError) as error:  # of Matplotlib, or for lack of memory
        notify(f"clusters.png was not drawn: {error}; `dropcluster clusters {folder}` draws it")
