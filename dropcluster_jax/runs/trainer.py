"""A training run from its configuration to its results.

A run that was stopped or killed resumes from its latest checkpoint, with bit-identical results. With multiple
processes, all call the same functions; except for its part of a checkpoint, only the first one writes files.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from dropcluster_jax import __version__
from dropcluster_jax.data import BatchIterator, Dataset, DatasetSpec, Loader, normalize
from dropcluster_jax.data.opening import open_data
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import build, distributed, figures, run_folder
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.logging import NullWriter, RunWriter, require_tensorboard
from dropcluster_jax.runs.paths import AnyPath, is_remote, remove_folder
from dropcluster_jax.runs.preemption import Preemption
from dropcluster_jax.runs.staging import Staging
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.loop import LogEntry, Save, evaluate, fit
from dropcluster_jax.training.schedules import every
from dropcluster_jax.training.steps import Batch, Steps, TrainState


class Run(NamedTuple):
    """The validated parts of a run; nothing has been written to its folder yet.

    Attributes:
        config: The configuration.
        folder: The run folder.
        num_steps: Number of optimizer steps.
        dataset: The dataset.
        loader: Its loader.
        model: The network.
        steps: The pure steps.
        parallel: The devices and how steps run on them.
    """

    config: TrainConfig
    folder: AnyPath
    num_steps: int
    dataset: Dataset
    loader: Loader
    model: ResNet
    steps: Steps
    parallel: DataParallel

    def abstract_state(self) -> TrainState:
        """Returns the shapes, types and shardings of the training state."""
        batch = build.abstract_batch(self.dataset.spec, self.config.batch_size)
        return self.parallel.abstract_state(self.steps, jax.random.key(self.config.seed), batch)


class Stopped(Exception):
    """A run was stopped by a signal; `checkpoint` is the step from which it can resume, if any."""

    def __init__(self, name: str, status: int, step: int, checkpoint: int | None) -> None:
        super().__init__(f"stopped by {name} after step {step}")
        self.name, self.status, self.step, self.checkpoint = name, status, step, checkpoint


def prepare(
    config: TrainConfig,
    restart: bool = False,
    notify: Callable[[str], None] = lambda message: None,
    dry_run: bool = False,
) -> Run:
    """Builds and validates the parts of a run, so that errors surface before anything is written.

    If the configuration has no output folder, creates a new one last, unless this is a `dry_run`. With `restart`, an
    existing run in the output folder is going to be removed. `notify` is called with warnings.

    Raises:
        ValueError, TypeError: If a value is invalid; the message names it.
        FileNotFoundError: If the dataset does not exist.
        FileExistsError: If the output folder contains anything other than this run.
        RunFolderError: If no new folder can be created.
        ImportError: If a required extra is not installed.
    """
    if config.out is None and jax.process_count() > 1:
        raise ValueError("out is required with multiple processes, and must be a folder that all of them can write to")
    if jax.process_count() > 1 and str(config.out).startswith("s3://"):
        raise ValueError(
            "out must be on gs:// or in a folder that all processes can write to, with multiple processes, "
            f"got {config.out}"
        )
    if config.out is not None and restart:
        run_folder.holds_run(config.out)
    elif config.out is not None:
        run_folder.finished_run(config.out, config)
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
    spec = dataset.spec
    build.check_probe_size(config, spec, parallel.mesh.size)
    if config.out is not None and not restart:
        run_folder.check_same_dataset(config.out, spec)
    model, steps, parallel, state = _compile_steps(_without_seeds(config), spec, parallel)
    if config.drop.rate:
        _warn_of_single_clusters(config, model, state, notify)
    folder = config.out or (pathlib.Path("runs") if dry_run else run_folder.new_folder(config))
    return Run(config, folder, build.num_steps(config, spec), dataset, loader, model, steps, parallel)


@functools.lru_cache(maxsize=1)
def _compile_steps(
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


def _without_seeds(config: TrainConfig) -> TrainConfig:
    """Returns the configuration without what the compiled programs do not depend on."""
    return dataclasses.replace(config, seed=0, out=None, data=dataclasses.replace(config.data, seed=0))


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
    log: Callable[[LogEntry], None] = lambda entry: None,
    notify: Callable[[str], None] = print,
    restart: bool = False,
) -> dict[str, Any]:
    """Trains, from the start or from the latest checkpoint, and writes the results.

    With `restart`, an existing run in the output folder is removed first. `log` is called with each log entry after it
    was written, `notify` with messages about checkpoints and figures. The folder is locked until the function returns.

    Returns:
        The summary, as in `summary.json`; empty except in the first process.

    Raises:
        Stopped: If the process received SIGTERM or SIGINT; a checkpoint was written.
        NonFiniteError: If the loss or a gradient was not finite.
        RunFolderError: If the folder cannot be created, or another process is writing to it.
        FileExistsError: If another process has started a different run in the folder.
        CorruptCheckpointError: If the folder has checkpoints, but none is intact.
        CheckpointMismatchError: If the latest checkpoint does not fit the configuration.
        OSError: If results cannot be written.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        _prepare_folder(run, restart, stack, notify)
        preemption = stack.enter_context(Preemption())
        staging = stack.enter_context(_staging(run))
        checkpointer = Checkpointer(run.folder / run_folder.CHECKPOINTS, run.config.checkpoint.keep, notify)
        stack.callback(checkpointer.close)
        batches = stack.enter_context(contextlib.closing(run.loader.train()))
        state, metadata = _restore_or_init(run, checkpointer, batches, notify)
        writer = stack.enter_context(_open_writer(run, staging.local, state, metadata))
        progress = _Progress(run, metadata, start)

        def save(state: TrainState, *, accuracy: float | None, nonfinite_steps: int) -> None:
            metadata = progress.metadata(batches, writer, nonfinite_steps)
            staging.upload(last=run_folder.SUMMARY)  # the log, before the checkpoint that refers to it
            checkpointer.save(state, metadata, accuracy)

        def log_entry(entry: LogEntry) -> None:
            entry = _by_place(run.model, entry)
            writer.log(entry)
            log(entry)

        def log_clusters(state: TrainState) -> None:
            writer.log_clusters(int(state.step), figures.clusters_by_place(run.model, state.clusters))

        if state.clusters and not metadata:
            log_clusters(state)  # the initial grid
        state = _fit(
            run,
            staging.local,
            state,
            batches,
            metadata,
            preemption,
            save=save,
            log=log_entry,
            on_clusters=log_clusters,
        )
        saved, step = checkpointer.wait(), int(jax.device_get(state.step))
        if step < run.num_steps:
            raise Stopped(preemption.name, preemption.status, step, saved[-1] if saved else None)
        if step not in saved:
            raise OSError(f"the checkpoint of the last step, {step}, could not be written")
        last = _with_test(run, state, writer.last)
        probe = run.loader.probe(run.config.drop.probe_size, 0)  # in all processes
        summary: dict[str, Any] = {}

        def write_results() -> None:
            summary.update(_write_results(run, staging.local, state, last, progress.seconds(), probe, notify))
            staging.upload(last=run_folder.SUMMARY)

        # The others wait: the first process is terminated soon after any of them has exited.
        distributed.in_first_process(write_results, OSError)
        return summary


def _prepare_folder(run: Run, restart: bool, stack: contextlib.ExitStack, notify: Callable[[str], None]) -> None:
    """Locks the folder until `stack` closes, removes an existing run if asked to, and writes `config.json`.

    All of that in the first process, on behalf of all.
    """

    def prepare_folder() -> None:
        stack.enter_context(run_folder.lock(run.folder, notify))
        if restart:
            run_folder.clear(run.folder)
        else:  # another process may have trained here since `prepare`
            run_folder.finished_run(run.folder, run.config)
            run_folder.check_same_dataset(run.folder, run.dataset.spec)
        run_folder.write_config(run.folder, run.config, run.dataset.spec, __version__)

    distributed.barrier("all processes have read the run folder")
    distributed.in_first_process(prepare_folder, run_folder.RunFolderError)


def _restore_or_init(
    run: Run, checkpointer: Checkpointer, batches: BatchIterator, notify: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and the metadata of the latest checkpoint, or a new state and no metadata."""
    restored = checkpointer.restore(run.abstract_state())
    if restored is None:
        probe = run.loader.probe(run.config.drop.probe_size, 0)
        return run.parallel.compile(run.steps).init(jax.random.key(run.config.seed), probe), {}
    batches.set_state(restored.metadata["batches"])
    notify(f"resuming from the checkpoint of step {int(restored.state.step)}")
    saved, default = (jax.random.key_impl(key) for key in (restored.state.key, jax.random.key(0)))
    if saved != default:
        notify(f"the run keeps its PRNG implementation, {saved}; JAX's default is now {default}")
    return restored.state, restored.metadata


@contextlib.contextmanager
def _staging(run: Run) -> Iterator[Staging]:
    """Yields a local copy of the run folder, which is uploaded again if the run ends early."""
    with Staging(run.folder) as staging:
        if jax.process_index() == 0:
            staging.download([run_folder.METRICS, run_folder.CLUSTERS])
        try:
            yield staging
        except BaseException:
            staging.upload(last=run_folder.SUMMARY)
            raise


def _open_writer(run: Run, folder: pathlib.Path, state: TrainState, metadata: dict[str, Any]) -> RunWriter | NullWriter:
    if jax.process_index() != 0:
        return NullWriter()
    sizes = metadata.get("log_sizes", {})
    if run.config.tensorboard and is_remote(run.folder):
        remove_folder(run.folder / run_folder.TENSORBOARD)  # the new event file contains all entries
    try:
        return RunWriter(folder, sizes, clusters=bool(state.clusters), tensorboard=run.config.tensorboard)
    except ValueError as error:  # a damaged log
        raise run_folder.RunFolderError(f"{error}; remove the file to resume without it") from None


class _Progress:
    """The training time over restarts."""

    def __init__(self, run: Run, metadata: dict[str, Any], start: float) -> None:
        self._run, self._start = run, start
        self._seconds = metadata.get("seconds", 0)

    def seconds(self) -> float:
        return round(self._seconds + time.perf_counter() - self._start, 1)

    def metadata(self, batches: BatchIterator, writer: RunWriter | NullWriter, nonfinite_steps: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        return {
            "version": __version__,
            "config": self._run.config.to_json(),
            "batches": batches.get_state(),
            "nonfinite_steps": nonfinite_steps,
            "log_sizes": writer.sizes(),
            "seconds": self.seconds(),
        }


def _by_place(model: ResNet, entry: LogEntry) -> LogEntry:
    """Replaces layer names by places in an entry about clusters."""
    if entry["event"] != "clusters":
        return entry
    return {**entry, "layers": {place: entry["layers"][name] for place, name in model.drop_layer_names.items()}}


def _fit(
    run: Run,
    folder: pathlib.Path,
    state: TrainState,
    batches: BatchIterator,
    metadata: dict[str, Any],
    preemption: Preemption,
    *,
    save: Save,
    log: Callable[[LogEntry], None],
    on_clusters: Callable[[TrainState], None],
) -> TrainState:
    config = run.config
    update_interval = config.drop.update_interval if state.clusters else 0
    epochs_of_steps = config.evaluate_every_epochs * build.steps_per_epoch(config, run.dataset.spec)
    at_end_only = config.fake_data or not config.evaluate_every_epochs
    profile = folder / run_folder.PROFILE if config.profile and jax.process_index() == 0 else None
    return fit(
        run.steps,
        state,
        batches,
        num_steps=run.num_steps,
        probe=functools.partial(run.loader.probe, config.drop.probe_size),
        update_clusters_when=every(update_interval, round(config.drop.ramp_start * run.num_steps)),
        test=run.loader.test,
        evaluate_every=run.num_steps if at_end_only else max(1, round(epochs_of_steps)),
        on_metrics=log,
        on_clusters=on_clusters,
        parallel=run.parallel,
        save=save,
        save_every=config.checkpoint.every,
        stop=preemption,
        max_nonfinite_steps=config.max_nonfinite_steps,
        nonfinite_steps=metadata.get("nonfinite_steps", 0),
        profile=profile,
    )


def _with_test(run: Run, state: TrainState, last: dict[str, LogEntry]) -> dict[str, LogEntry]:
    """Evaluates again if the log of a resumed run was lost; in all processes."""
    if distributed.all_agree("test" in last or jax.process_index() != 0):
        return last
    return {**last, "test": evaluate(run.parallel.compile(run.steps).evaluate, state, run.loader.test())}


def _write_results(
    run: Run,
    folder: pathlib.Path,
    state: TrainState,
    last: dict[str, LogEntry],
    seconds: float,
    probe: Batch,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Writes `summary.json`, then `clusters.png`, and returns the summary."""
    test = {f"test_{name}": value for name, value in last["test"].items() if name not in ("event", "step", "count")}
    summary = {
        **test,
        "steps": run.num_steps,
        "nonfinite_steps": last["nonfinite"]["nonfinite_steps"] if "nonfinite" in last else 0,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": seconds,
        "skipped": list(run.dataset.skipped),
        "clusters": figures.summarize_clusters(run.model, state.clusters),
    }
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    if state.clusters and not importlib.util.find_spec("matplotlib"):
        notify('clusters.png was not drawn, as Matplotlib is not installed: pip install "dropcluster-jax[plot]"')
    elif state.clusters:
        title = f"Learned clusters: {run.config.model} on {run.config.data.name}, step {run.num_steps}"
        try:
            images = normalize(distributed.addressable(probe["image"]), run.dataset.spec.mean, run.dataset.spec.std)
            drawn = figures.clusters_and_inputs(run.model, jax.device_get(state.variables()), images)
            figures.save_cluster_figure(folder / run_folder.CLUSTERS_FIGURE, drawn, title)
        except Exception as error:  # of Matplotlib, or for lack of memory: the results are complete without the figure
            notify(f"clusters.png was not drawn: {error!r}; `dropcluster clusters {run.folder}` draws it")
    return summary
