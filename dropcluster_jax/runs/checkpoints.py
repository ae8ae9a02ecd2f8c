"""Checkpointer of a run, by Orbax: written while training goes on, whole or not at all, and checked when read.

A checkpoint holds the whole `TrainState` and a JSON text: what the run says about itself (where its data stands, its
configuration) and a checksum of each array. A flipped byte, which Orbax restores without a word, is found by these.
"""

import contextlib
import functools
import json
import logging
import pathlib
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32

from dropcluster_jax._optional import optional_import
from dropcluster_jax.training.steps import TrainState

FORMAT = 1  # raised whenever what a checkpoint holds changes
_DAMAGED = "damaged"
_MOST = 1024  # checkpoints that processes tell one another of


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
        state: the state, on the devices that were asked for.
        about: what the run said about itself.
    """

    state: TrainState
    about: dict[str, Any]


class CorruptCheckpointError(Exception):
    """There are checkpoints, and none can be trusted.

    Example:
        >>> import tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "3").mkdir()  # all that is left of a checkpoint
        >>> state = TrainState({}, {}, {}, (), jax.random.key(0), jnp.array(0))
        >>> try:
        ...     Checkpointer(folder).restore(state)
        ... except CorruptCheckpointError as error:
        ...     print("step 3" in str(error), [path.name for path in folder.iterdir()])
        True ['3']
    """


class CheckpointVersionError(ValueError):
    """A checkpoint is of a format that this version does not read."""


class Checkpointer:
    """The checkpoints of one run.

    Of several processes all call each method, at the same step; the folder is one that all can write to.

    Args:
        folder: where they lie, one folder for each step; made when the first is written.
        keep: how many of the newest are kept; beside them the one with the best accuracy is.
        say: called with a message when a checkpoint is damaged, or cannot be written.

    Raises:
        ImportError: Orbax is not installed.
        ValueError: `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> params = {"kernel": jnp.arange(3.0)}  # in earnest: of `make_steps(...).init`
        >>> state = TrainState(params, {}, {}, (), jax.random.key(0), jnp.array(7))
        >>> checkpoints = Checkpointer(pathlib.Path(tempfile.mkdtemp(), "checkpoints"))
        >>> checkpoints.save(state, {"note": "a good one"}, accuracy=0.9)
        >>> checkpoints.wait()
        [7]
        >>> restored = checkpoints.restore(jax.eval_shape(lambda: state))
        >>> restored.about["note"], int(restored.state.step), restored.state.params["kernel"].tolist()
        ('a good one', 7, [0.0, 1.0, 2.0])
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2, say: Callable[[str], None] = print) -> None:
        with optional_import("Orbax"):
            import orbax.checkpoint
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._orbax = orbax.checkpoint
        self.folder, self._keep, self._say = folder.absolute(), keep, say
        self._manager: Any = None
        self._writing: int | None = None

    def steps(self) -> list[int]:
        """The steps of all checkpoints, sound or not.

        Returns:
            In ascending order; none where there is no folder.
        """
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(self, state: TrainState, about: dict[str, Any], accuracy: float | None = None) -> None:
        """Write a checkpoint; returns as soon as the arrays were copied.

        What goes wrong, now or with the one before, is said and does not end the run.

        Args:
            state: what is saved, under its step.
            about: what JSON takes.
            accuracy: by which the best is kept, in [0, 1]; None where it is not known.
        """
        self.wait()
        step = int(state.step)
        if step in _of_first(self.steps()):
            return
        tree = _as_tree(state)
        args = self._orbax.args.Composite(
            state=self._orbax.args.StandardSave(tree),
            about=self._orbax.args.JsonSave(_sealed({"format": FORMAT, **about, "checksums": _checksums(tree)})),
        )
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self._writing = step
        try:
            with _quiet():
                self._open().save(step, args=args, metrics=metrics)
        except Exception as error:
            self._failed(error)

    def wait(self) -> list[int]:
        """Wait until what is being written is written.

        Returns:
            The steps that there are then, as of `steps`.
        """
        if self._manager is not None and self._writing is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                self._failed(error)
        self._writing = None
        return self.steps()

    def close(self) -> None:
        """Wait, and let go of what writes."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, target: TrainState, *, best: bool = False, quarantine: bool = True) -> Restored | None:
        """The newest sound checkpoint, or the sound one with the best accuracy.

        Damaged ones that were met are named.

        Args:
            target: the shapes, types and, where they are not one device's, shardings of the arrays.
            best: whether the accuracy counts, not the step.
            quarantine: whether damaged ones are moved into the folder `damaged` beside the checkpoints, so that
                training can write them again. Not for who only reads: a run may be writing there.

        Returns:
            What it held, its arrays of the shapes, types and places of `target`; None if there is no checkpoint at all.

        Raises:
            CorruptCheckpointError: there are checkpoints, all damaged; they stay where they are.
            CheckpointVersionError: a checkpoint of another format; a ValueError.
        """
        order = sorted(self.steps(), reverse=True)
        if best:
            order.sort(key=lambda step: self._accuracy(step), reverse=True)  # stable: the newest of equals
        order = _of_first(order)
        damaged: list[tuple[int, str]] = []
        for step in order:
            restored, reason = self._read(step, target)
            if restored is not None:
                for bad, why in damaged:
                    moved = ""
                    if quarantine:
                        moved = f" and was moved to {self._move_away(self.folder / str(bad), str(bad))}"
                    self._say(f"the checkpoint of step {bad} is damaged ({why}){moved}; that of step {step} is used")
                return restored
            damaged.append((step, reason))
        if not damaged:
            return None
        described = "; ".join(f"step {step}: {reason}" for step, reason in damaged)
        raise CorruptCheckpointError(f"{self.folder} holds no sound checkpoint ({described}); nothing was removed")

    def _read(self, step: int, target: TrainState) -> tuple[Restored | None, str]:
        """What a checkpoint holds, or None and why it cannot be trusted; the same in all processes."""
        orbax, reason, about, tree = self._orbax, "", {}, None
        try:
            with _quiet(), orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as reader:
                sealed = reader.restore(self.folder / str(step), orbax.args.Composite(about=orbax.args.JsonRestore()))
                about = _unsealed(sealed["about"])
                if about["format"] != FORMAT:
                    raise CheckpointVersionError(
                        f"{self.folder / str(step)} has format {about['format']}, this version reads {FORMAT}"
                    )
                item = orbax.args.StandardRestore(_as_tree(target))
                tree = reader.restore(self.folder / str(step), orbax.args.Composite(state=item))["state"]
        except CheckpointVersionError:
            raise
        except Exception as error:  # whatever a damaged file makes of a reader
            _ignore_closed_loops()
            reason = _first_line(error)
        if not _all_agree(tree is not None) or tree is None:
            return None, reason or "another process cannot read it"
        found, expected = _checksums(tree), about["checksums"]
        altered = [name for name, checksum in found.items() if expected.get(name) != checksum]
        if altered or set(found) != set(expected):
            return None, f"the checksum of {', '.join(altered[:3]) or 'what is missing'} is another"
        return Restored(_from_tree(tree, target), {k: v for k, v in about.items() if k != "checksums"}), ""

    def _move_away(self, path: pathlib.Path, name: str) -> pathlib.Path:
        aside = self.folder.parent / _DAMAGED
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            names = [name, *(f"{name}-{i}" for i in range(2, 1000))]
            path.rename(next(aside / each for each in names if not (aside / each).exists()))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("what is damaged was moved away")
        return aside

    def _accuracy(self, step: int) -> float:
        """By what Orbax wrote beside a checkpoint; the least where it cannot be read."""
        try:
            return float(json.loads((self._metrics(step) / "metrics").read_text())["accuracy"])
        except (OSError, ValueError, KeyError, TypeError):
            return float("-inf")

    def _metrics(self, step: int) -> pathlib.Path:
        return self.folder / str(step) / "metrics"

    def _open(self) -> Any:
        if self._manager is None:
            orbax, policies = self._orbax, self._orbax.checkpoint_managers
            best = policies.BestN(n=1, get_metric_fn=_accuracy, keep_checkpoints_without_metrics=False)
            options = orbax.CheckpointManagerOptions(
                best_fn=_accuracy,  # metrics are written only if it is given; what is kept, the policies say
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
            )
            if jax.process_index() == 0:  # of what was being written when a process was killed, or failed and still is
                for unfinished in self.folder.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            unreadable = [
                step for step in self.steps() if self._metrics(step).exists() and self._accuracy(step) == float("-inf")
            ]
            for step in _of_first(unreadable):  # which the manager reads, and cannot do without
                self._move_away(self._metrics(step), f"{step}-metrics")
            self._manager = orbax.CheckpointManager(self.folder, options=options)
        return self._manager

    def _failed(self, error: Exception) -> None:
        """Say it, and begin anew: a manager that has failed once counts what it did not write."""
        _ignore_closed_loops()
        step, self._writing, manager, self._manager = self._writing, None, self._manager, None
        if manager is not None:
            with _quiet():
                try:
                    manager.close()
                except Exception:  # the same failure again
                    logging.getLogger(__name__).debug("closing after a failed checkpoint", exc_info=True)
        there = self.steps()
        rest = f"the last good one is of step {there[-1]}" if there else "there is none yet"
        self._say(f"the checkpoint of step {step} cannot be written: {_first_line(error)}; {rest}; training goes on")


def _accuracy(metrics: PyTree) -> float:
    return metrics["accuracy"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Orbax logs of a failure, with tracebacks, is told in a sentence elsewhere."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@functools.cache
def _ignore_closed_loops() -> None:
    """What Orbax leaves of a failure is collected later, each with a traceback that says nothing."""
    show = sys.unraisablehook

    def hook(left: Any) -> None:
        if not (isinstance(left.exc_value, RuntimeError) and "Event loop is closed" in str(left.exc_value)):
            show(left)

    sys.unraisablehook = hook


def _as_tree(state: TrainState) -> dict[str, PyTree]:
    """Plain dicts of arrays: of the key its words, and nothing that is empty."""
    fields = state._asdict()
    if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        if isinstance(state.key, jax.ShapeDtypeStruct):
            words = jax.eval_shape(jax.random.key_data, state.key)
            fields["key"] = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=state.key.sharding)
        else:
            fields["key"] = jax.random.key_data(state.key)
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _from_tree(tree: dict[str, PyTree], target: TrainState) -> TrainState:
    state = target._replace(**tree)
    if jnp.issubdtype(target.key.dtype, jax.dtypes.prng_key):
        state = state._replace(key=jax.random.wrap_key_data(state.key))
    return state


def _checksums(tree: PyTree) -> dict[str, int]:
    """A number for each array, by its path; the same on any devices."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: int(value) for name, value in jax.device_get(_checksum_all(named)).items()}


@jax.jit
def _checksum_all(named: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _checksum(leaf) for name, leaf in named.items()}


def _checksum(leaf: Array) -> UInt32[Array, ""]:
    """The sum, modulo 2^32, of each word mixed with its place: integers, so no order of summing matters."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = leaf.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = (words ^ (place * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _sealed(about: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(about, sort_keys=True)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


def _unsealed(sealed: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
        raise OSError("the checksum of its description is another")
    return json.loads(sealed["text"])


def _all_agree(mine: bool) -> bool:
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(jnp.array(mine)).all())


def _of_first(steps: list[int]) -> list[int]:
    """What the first process sees in the folder, in all: of a shared one not all see the same at the same time."""
    if jax.process_count() == 1:
        return steps
    told = jnp.array((steps + [-1] * _MOST)[:_MOST], jnp.int32)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(told) if step >= 0]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
