"""A run from its configuration to a folder with results: what `dropcluster train` does.

A run that was stopped or killed goes on from its last checkpoint, and ends as it would have ended. Of several processes
all call the same functions; the first alone writes, but for its part of a checkpoint.
"""

import contextlib
import functools
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from dropcluster_jax import __version__, viz
from dropcluster_jax.data import Dataset, Loader, fake_data, load, normalize, make_loader
from dropcluster_jax.models import ResNet
from dropcluster_jax.training import history, layers, tensorboard
from dropcluster_jax.runs.build import make_model, make_run_steps
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.run_folder import (
    RecordFile,
    check_same_data,
    clear,
    finished_run,
    holds_run,
    new_folder,
    write_json,
)
from dropcluster_jax.training.loop import LogEntry, fit
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.runs.preemption import Preemption
from dropcluster_jax.training.schedules import every
from dropcluster_jax.training.steps import Batch, Steps, TrainState

_FAKE = 1024  # images, or one batch where that is more


class Run(NamedTuple):
    """All that a run is made of, checked; nothing is written yet.

    Attributes:
        config: the configuration.
        folder: where results go.
        num_steps: the number of the last optimizer step.
        dataset: the images.
        loader: how they get to the devices.
        model: the network.
        steps: the pure steps.
        parallel: the devices.
    """

    config: TrainConfig
    folder: pathlib.Path
    num_steps: int
    dataset: Dataset
    loader: Loader
    model: ResNet
    steps: Steps
    parallel: DataParallel

    def example(self) -> Batch:
        """The shapes of a batch of all processes."""
        size, shape = self.config.batch_size, self.dataset.shape
        return {
            "image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        }


class Stopped(Exception):
    """A run was told to stop, and did.

    Attributes:
        name: of the signal.
        status: what the process is to exit with.
        step: the step after which it stopped.
        checkpoint: the step from which it goes on; None if no checkpoint could be written.
    """

    def __init__(self, name: str, status: int, step: int, checkpoint: int | None) -> None:
        super().__init__(f"stopped by {name} after step {step}")
        self.name, self.status, self.step, self.checkpoint = name, status, step, checkpoint


def prepare(config: TrainConfig, restart: bool = False, say: Callable[[str], None] = lambda message: None) -> Run:
    """Make all that a run needs, so that whatever is wrong with its configuration shows before it begins.

    Args:
        config: of the run.
        restart: whether a run that the output folder holds, of whatever configuration, is going to be removed.
        say: called with what may not have been meant.

    Raises:
        ValueError, TypeError: a value that cannot be, with its name.
        FileNotFoundError: the data set is not there.
        FileExistsError: the output folder holds something else.
        ImportError: an extra is not installed.
    """
    if config.out is None and jax.process_count() > 1:
        raise ValueError("out must be given with several processes, and be a folder that all of them can write to")
    folder = config.out or new_folder(config)
    if restart:
        holds_run(folder)
    else:
        finished_run(folder, config)
    if config.tensorboard:
        tensorboard.require()
    parallel = DataParallel(config.strategy, shard_optimizer=config.shard_optimizer)
    dataset, loader = open_data(config, parallel.batch_sharding)
    if not restart:
        check_same_data(folder, _described(dataset))
    num_steps = config.steps or max(1, round(config.epochs * (len(dataset.train) // config.batch_size)))
    model = make_model(config, dataset.num_classes, dataset.shape, parallel.axis_name)
    steps = make_run_steps(config, model, dataset, num_steps, parallel.axis_name)
    run = Run(config, folder, num_steps, dataset, loader, model, steps, parallel)
    # Only now do the layers meet their maps: a block larger than one shows here.
    state = jax.eval_shape(steps.init, jax.random.key(0), run.example())
    jax.eval_shape(parallel.compile(steps).train, state, run.example())
    if config.drop.rate:
        for place, clusters in layers.cluster_layers(model, state.clusters).items():
            if len(clusters.sizes) == 1:
                say(
                    f"{place} has a single cluster, its whole map of {'x'.join(map(str, clusters.labels.shape[:-1]))}: "
                    f"drop.cluster_size, {config.drop.cluster_size:g}, is large for it"
                )
    return run


def open_data(config: TrainConfig, sharding: NamedSharding | None = None) -> tuple[Dataset, Loader]:
    """The images, and the loader by which they get to the devices."""
    data, augment = config.data, config.augment
    if config.fake_data:
        dataset = fake_data(data.name, max(config.batch_size, _FAKE), data.image_size)
    else:
        dataset = load(
            data.name,
            data.dir,
            train_split=data.train_split,
            test_split=data.test_split,
            test_fraction=data.test_fraction,
            image_size=data.image_size,
            fraction=data.fraction,
            examples_per_class=data.examples_per_class,
            seed=data.seed,
            skip_corrupt=data.skip_corrupt,
            download=data.download,
        )
    loader = make_loader(
        dataset,
        config.batch_size,
        config.seed,
        loader=data.loader,
        sharding=sharding,
        random_crop=augment.resized_crop,
        flip=augment.flip,
        workers=data.workers,
        skip_corrupt=data.skip_corrupt,
    )
    return dataset, loader


def execute(
    run: Run,
    show: Callable[[LogEntry], None] = lambda record: None,
    say: Callable[[str], None] = print,
    restart: bool = False,
) -> dict[str, Any]:
    """Train, from the start or from the last checkpoint, and write the results.

    Args:
        run: what `prepare` gave.
        show: called with each record after it was written.
        say: called with a message about checkpoints.
        restart: remove a run that the folder holds, and start over.

    Returns:
        The summary, as in `summary.json`; empty but in the first process.

    Raises:
        Stopped: told to, by SIGTERM or SIGINT; a checkpoint was written.
        NonFiniteError: the loss or a gradient was not finite.
        CorruptCheckpointError: the folder has checkpoints, all of them damaged.
        OSError: results cannot be written.
    """
    config, parallel, loader, begin = run.config, run.parallel, run.loader, time.perf_counter()
    first_process = jax.process_index() == 0
    _meet("the run folder was looked at")
    if restart and first_process:
        clear(run.folder)
    _meet("the run folder is as it is to be")
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(Preemption())
        if first_process:
            run.folder.mkdir(parents=True, exist_ok=True)
            described = {"version": __version__, **config.to_json(), "dataset": _described(run.dataset)}
            write_json(run.folder / "config.json", described)
        checkpoints = Checkpointer(run.folder / "checkpoints", config.checkpoint.keep, say)
        stack.callback(checkpoints.close)
        batches = stack.enter_context(contextlib.closing(loader.train()))
        probe = functools.partial(loader.probe, config.drop.probe_size)

        key = jax.random.key(config.seed)
        restored = checkpoints.restore(parallel.abstract_state(run.steps, key, run.example()))
        if restored is None:
            state, about = parallel.compile(run.steps).init(key, probe(0)), {}
        else:
            state, about = restored
            batches.set_state(about["position"])
            say(f"going on from the checkpoint of step {int(state.step)}")
        metrics = labels = board = None
        last: dict[str, LogEntry] = {}
        if first_process:
            metrics = stack.enter_context(RecordFile(run.folder / "metrics.jsonl", about.get("metrics", 0)))
            last = {record["event"]: record for record in metrics.records()}
            if state.clusters:
                labels = stack.enter_context(RecordFile(run.folder / history.FILE, about.get("labels", 0)))
            if config.tensorboard:
                board = stack.enter_context(tensorboard.TensorBoard(run.folder / "tensorboard"))
                for record in metrics.records():
                    board(record)
                for step, known in history.steps(labels.records() if labels else []):
                    board.draw(step, known)

        def report(record: LogEntry) -> None:
            last[record["event"]] = record
            if metrics:
                metrics.add(record)
            if board:
                board(record)
            show(record)

        def watch(state: TrainState) -> None:
            if labels:
                labels.add(history.record(int(state.step), layers.cluster_layers(run.model, state.clusters)))
            if board:
                board.watch(state)

        if labels and not labels.records():
            watch(state)

        def skipped() -> list[str]:
            return list(dict.fromkeys(_of_all([*about.get("skipped", run.dataset.skipped), *loader.skipped])))

        def seconds() -> float:
            return round(about.get("seconds", 0) + time.perf_counter() - begin, 1)

        def save(state: TrainState, *, accuracy: float | None, nonfinite_steps: int) -> None:
            description = {
                "version": __version__,
                "config": config.to_json(),
                "position": batches.get_state(),
                "nonfinite_steps": nonfinite_steps,
                "metrics": metrics.size() if metrics else 0,
                "labels": labels.size() if labels else 0,
                "skipped": skipped(),
                "seconds": seconds(),
            }
            checkpoints.save(state, description, accuracy)

        state = fit(
            run.steps,
            state,
            batches,
            num_steps=run.num_steps,
            probe=probe,
            update_clusters_when=every(
                config.drop.update_every if state.clusters else 0, round(config.drop.ramp_start * run.num_steps)
            ),
            test=loader.test,
            evaluate_every=run.num_steps if config.fake_data else max(1, len(run.dataset.train) // config.batch_size),
            log=report,
            on_clusters=watch,
            parallel=parallel,
            save=save,
            save_every=config.checkpoint.every,
            stop=told,
            max_nonfinite_steps=config.max_nonfinite_steps,
            nonfinite_steps=about.get("nonfinite_steps", 0),
            profile=run.folder / "profile" if config.profile and first_process else None,
        )
        written, step = checkpoints.wait(), int(jax.device_get(state.step))
        if step < run.num_steps:
            raise Stopped(told.name, told.status, step, written[-1] if written else None)
        if step not in written:
            raise OSError(f"the checkpoint of the last step, {step}, could not be written")

    batch, left_out = probe(0), skipped()  # of all processes
    if not first_process:
        return {}
    summary = {
        **{f"test_{name}": value for name, value in last["test"].items() if name not in ("event", "step", "count")},
        "steps": run.num_steps,
        "nonfinite_steps": last["bad"]["nonfinite_steps"] if "bad" in last else 0,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": seconds(),
        "skipped": left_out,
        "clusters": layers.summarize(run.model, layers.cluster_layers(run.model, state.clusters)),
    }
    if state.clusters and not importlib.util.find_spec("matplotlib"):
        say('no clusters.png, as Matplotlib is not installed: pip install "dropcluster-jax[plot]"')
    elif state.clusters:
        images = normalize(_here(batch["image"]), run.dataset.mean, run.dataset.std)
        title = f"Learned clusters: {config.model} on {config.data.name}, step {run.num_steps}"
        drawn = layers.clusters_and_maps(run.model, jax.device_get(state.variables()), images)
        figure = viz.cluster_figure(drawn, title=title)
        figure.savefig(run.folder / "clusters.png", dpi=layers.DPI)
    write_json(run.folder / "summary.json", summary)
    return summary


def _described(dataset: Dataset) -> dict[str, Any]:
    """What `config.json` says of it: what a network needs to be used without."""
    return {
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "train_examples": len(dataset.train),
    }


def _meet(why: str) -> None:
    """Wait for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(why)


def _of_all(messages: list[str]) -> list[str]:
    """Those of all processes, one after the other."""
    if jax.process_count() == 1:
        return messages
    text = np.frombuffer(json.dumps(messages).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [one for part in multihost_utils.process_allgather(padded) for one in json.loads(bytes(part))]


def _here(images: jax.Array) -> np.ndarray:
    """Those of a divided batch that lie on this process's devices."""
    return np.concatenate([np.asarray(part.data) for part in images.addressable_shards])
