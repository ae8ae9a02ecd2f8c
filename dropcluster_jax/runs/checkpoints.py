"""Checkpoints of a run: written asynchronously and atomically by Orbax, and verified when restored.

A checkpoint holds the whole `TrainState` and a JSON document with the run's metadata (configuration, data position),
the PRNG implementation of the key, and the shape and a checksum of each array. Orbax restores flipped bytes without an
error; the checksums detect them.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

from dropcluster_jax._optional import optional_import
from dropcluster_jax.runs import distributed, paths
from dropcluster_jax.runs.paths import AnyPath, as_path
from dropcluster_jax.runs.staging import Staging
from dropcluster_jax.training.steps import TrainState

FORMAT = 2  # incremented whenever older versions could not read the contents of checkpoints
_QUARANTINE = "damaged"
# The file of a checkpoint in an object store that is written last. In local folders, complete checkpoints are renamed.
_COMMIT_FILES = {"gs": "commit_success.txt", "s3": "_CHECKPOINT_METADATA"}

_Shapes = dict[str, list[Any]]  # the dtype and the dimensions of each array, by path


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        state: The training state, on the requested devices.
        metadata: What the run saved with it.
    """

    state: TrainState
    metadata: dict[str, Any]


class CorruptCheckpointError(Exception):
    """Checkpoints exist, but none is intact.

    Example:
        >>> import tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "3").mkdir()  # an empty checkpoint
        >>> state = TrainState({}, {}, {}, (), jax.random.key(0), jnp.array(0))
        >>> try:
        ...     Checkpointer(folder).restore(state)
        ... except CorruptCheckpointError as error:
        ...     print("step 3" in str(error), [path.name for path in folder.iterdir()])
        True ['3']
    """


class CheckpointVersionError(ValueError):
    """A checkpoint has a format that this version does not read."""


class CheckpointMismatchError(ValueError):
    """A checkpoint is intact but holds other arrays than the requested ones, e.g. of another network."""


class Checkpointer:
    """Saves and restores the checkpoints of a run.

    With multiple processes, all call each method at the same step, and all can write to the folder. Orbax writes to
    local folders and to Google Cloud Storage. For S3, checkpoints are written to a temporary folder and uploaded before
    `save` returns, which requires a single process.

    Args:
        folder: Folder of the checkpoints, with a subfolder for each step. Created by the first save.
        keep: Number of latest checkpoints to keep, in addition to the one with the best accuracy.
        notify: Called with a message if a checkpoint is damaged or cannot be written.

    Raises:
        ImportError: If Orbax is not installed.
        ValueError: If `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> params = {"kernel": jnp.arange(3.0)}
        >>> state = TrainState(params, {}, {}, (), jax.random.key(0), jnp.array(7))
        >>> checkpointer = Checkpointer(pathlib.Path(tempfile.mkdtemp(), "checkpoints"))
        >>> checkpointer.save(state, {"note": "first"}, accuracy=0.9)
        >>> checkpointer.wait()
        [7]
        >>> restored = checkpointer.restore(jax.eval_shape(lambda: state))
        >>> restored.metadata["note"], int(restored.state.step), restored.state.params["kernel"].tolist()
        ('first', 7, [0.0, 1.0, 2.0])
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, notify: Callable[[str], None] = print) -> None:
        with optional_import("Orbax"):
            import orbax.checkpoint
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._orbax = orbax.checkpoint
        path = as_path(folder)
        self.folder: AnyPath = path.absolute() if isinstance(path, pathlib.Path) else path
        self._keep, self._notify = keep, notify
        self._scheme = "" if isinstance(path, pathlib.Path) else str(path).partition(":")[0]
        self._staging: Staging | None = None
        self._manager: Any = None
        self._silenced = contextlib.ExitStack()  # while a checkpoint is being written in the background
        self._saving: int | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, intact or not, in ascending order."""
        steps = [path for path in paths.children(self.folder) if path.name.isdecimal()]
        return sorted(int(path.name) for path in steps if self._is_complete(path))

    def save(self, state: TrainState, metadata: dict[str, Any], accuracy: float | None = None) -> None:
        """Starts writing a checkpoint; returns once the arrays have been copied.

        If this or the previous checkpoint cannot be written, `notify` is called and training can continue.

        Args:
            state: The state to save under its step.
            metadata: A JSON-serializable dict.
            accuracy: The accuracy, in [0, 1], by which the best checkpoint is kept; None if unknown.
        """
        self.wait()
        step = int(state.step)
        if step in distributed.broadcast(self.steps()):
            return
        tree = _to_tree(state)
        args = self._orbax.args.Composite(
            state=self._orbax.args.StandardSave(tree),
            run_metadata=self._orbax.args.JsonSave(
                _seal(
                    {
                        "format": FORMAT,
                        **metadata,
                        "key_impl": _key_impl(state.key),
                        "shapes": _shapes(tree),
                        "checksums": _checksums(tree),
                    }
                )
            ),
        )
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self._saving = step
        self._silenced.enter_context(_silence_orbax())
        self._attempt(lambda: self._open_manager().save(step, args=args, metrics=metrics))
        if self._staging is not None and self._manager is not None:
            self._attempt(self._upload)

    def wait(self) -> list[int]:
        """Waits until the checkpoint that is being written is complete.

        Returns:
            The steps of all checkpoints.
        """
        if self._manager is not None and self._saving is not None:
            self._attempt(self._manager.wait_until_finished)
        self._silenced.close()
        self._saving = None
        return self.steps()

    def close(self) -> None:
        """Waits for the last checkpoint and releases resources."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def restore(
        self, target: TrainState, *, best: bool = False, step: int | None = None, quarantine: bool = True
    ) -> Restored | None:
        """Restores the latest intact checkpoint, the intact one with the best accuracy, or the one of a step.

        Calls `notify` for each damaged checkpoint that was skipped.

        Args:
            target: The shapes, types and (except on a single device) shardings of the arrays. The restored key has the
                PRNG implementation that was saved, whatever that of the target is.
            best: Whether to restore the checkpoint with the best accuracy.
            step: Step of the checkpoint to restore; None for any.
            quarantine: Whether to move damaged checkpoints to the folder `damaged` next to the checkpoints, so that
                training can save these steps again. Readers pass False: the run may be saving at the same time.

        Returns:
            The restored checkpoint; None if there is no such checkpoint.

        Raises:
            CorruptCheckpointError: If there are checkpoints but none is intact; they are left unchanged.
            CheckpointVersionError: If a checkpoint has another format.
            CheckpointMismatchError: If an intact checkpoint does not have the structure and shapes of `target`.
        """
        steps = sorted((saved for saved in self.steps() if step in (None, saved)), reverse=True)
        if best:
            steps.sort(key=self._accuracy, reverse=True)  # stable: ties go to the latest
        damaged: dict[int, str] = {}
        for candidate in distributed.broadcast(steps):
            restored, reason = self._read(candidate, target)
            if restored is not None:
                for damaged_step, damage in damaged.items():
                    self._report_damage(damaged_step, damage, quarantine, used=candidate)
                return restored
            damaged[candidate] = reason
        if not damaged:
            return None
        reasons = "; ".join(f"step {candidate}: {reason}" for candidate, reason in damaged.items())
        raise CorruptCheckpointError(f"{self.folder} has no intact checkpoint ({reasons}); nothing was removed")

    def _read(self, step: int, target: TrainState) -> tuple[Restored | None, str]:
        """Returns a verified checkpoint, or None and the reason; the same in all processes."""
        orbax, reason, metadata, tree = self._orbax, "", {}, None
        name, path = self.folder / str(step), self._orbax_folder() / str(step)
        with _silence_orbax(), warnings.catch_warnings(action="ignore"):
            try:
                with orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as reader:
                    sealed = reader.restore(path, orbax.args.Composite(run_metadata=orbax.args.JsonRestore()))
                    metadata = _unseal(sealed["run_metadata"])
                    if metadata["format"] != FORMAT:
                        raise CheckpointVersionError(
                            f"{name} has format {metadata['format']}, but this version reads format {FORMAT}"
                        )
                    shapes = metadata.pop("shapes", None) or self._stored_shapes(path)
                    item = _to_restorable_tree(target, shapes)
                    _check_fit(name, shapes, _shapes(item))
                    tree = reader.restore(path, orbax.args.Composite(state=orbax.args.StandardRestore(item)))["state"]
            except (CheckpointVersionError, CheckpointMismatchError):
                raise
            except Exception as error:  # Orbax raises plain `Exception`, e.g. for arrays that cannot be read
                reason = _first_line(error)
        if not distributed.all_agree(tree is not None) or tree is None:
            return None, reason or "another process cannot read it"
        actual, expected, key_impl = _checksums(tree), metadata.pop("checksums"), metadata.pop("key_impl", None)
        mismatches = [name for name, checksum in actual.items() if expected.get(name) != checksum]
        if mismatches or set(actual) != set(expected):
            return None, f"checksum mismatch in {', '.join(mismatches[:3]) or 'missing arrays'}"
        return Restored(_from_tree(tree, target, key_impl), metadata), ""

    def _stored_shapes(self, path: AnyPath) -> _Shapes:
        """Returns `_shapes` of a checkpoint that was written before they were part of the metadata."""
        handler: Any = self._orbax.StandardCheckpointHandler()
        return _shapes(handler.metadata(path / "state").tree)

    def _report_damage(self, step: int, reason: str, quarantine: bool, used: int) -> None:
        moved = ""
        if quarantine:
            moved = f" and was moved to {self._move_away(str(step), str(step))}"
        self._notify(f"the checkpoint of step {step} is damaged ({reason}){moved}; using the one of step {used}")

    def _move_away(self, path: str, name: str) -> AnyPath:
        """Moves a part of the folder to the folder `damaged`, under a name that may get a suffix."""
        folder = self.folder.parent / _QUARANTINE
        if jax.process_index() == 0:
            names = [name, *(f"{name}-{i}" for i in range(2, 1000))]
            free = next(folder / free for free in names if not (folder / free).exists())
            paths.move_folder(self.folder / path, free)
            if self._staging is not None:
                paths.remove_folder(self._staging.local / path)
        distributed.barrier("damaged checkpoint was moved")
        return folder

    def _accuracy(self, step: int) -> float:
        """Returns the accuracy that Orbax wrote with a checkpoint; -inf if it cannot be read."""
        try:
            return float(json.loads(paths.read_text(self.folder / self._metrics(step) / "metrics"))["accuracy"])
        except (OSError, ValueError, KeyError, TypeError):
            return float("-inf")

    def _metrics(self, step: int) -> str:
        return f"{step}/metrics"

    def _is_complete(self, path: AnyPath) -> bool:
        return not self._scheme or (path / _COMMIT_FILES[self._scheme]).exists()

    def _orbax_folder(self) -> AnyPath:
        """Returns the folder that Orbax reads and writes."""
        if self._scheme != "s3":
            return self.folder
        if self._staging is None:
            self._staging = Staging(self.folder)
            self._staging.download(map(str, self.steps()))
        return self._staging.local

    def _upload(self) -> None:
        assert self._staging is not None
        self._manager.wait_until_finished()
        self._staging.upload(last=_COMMIT_FILES["s3"])
        self._staging.remove_missing_folders()

    def _open_manager(self) -> Any:
        if self._manager is None:
            orbax, policies = self._orbax, self._orbax.checkpoint_managers
            best = policies.BestN(n=1, get_metric_fn=_get_accuracy, keep_checkpoints_without_metrics=False)
            options = orbax.CheckpointManagerOptions(
                best_fn=_get_accuracy,  # required for metrics to be written; the policies decide what is kept
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
            )
            if jax.process_index() == 0:  # leftovers of a killed process or of a failed save
                for path in paths.children(self.folder):
                    unfinished = path.name.isdecimal() and not self._is_complete(path)
                    if unfinished or path.name.endswith(".orbax-checkpoint-tmp"):
                        paths.remove_folder(path)
            folder = self._orbax_folder()
            unreadable = [
                step
                for step in self.steps()
                if (self.folder / self._metrics(step)).exists() and self._accuracy(step) == float("-inf")
            ]
            for step in distributed.broadcast(unreadable):  # the manager would fail to read these
                self._move_away(self._metrics(step), f"{step}-metrics")
            self._manager = orbax.CheckpointManager(folder, options=options)
        return self._manager

    def _attempt(self, write: Callable[[], Any]) -> None:
        """Calls `write`; on failure notifies, and discards the manager, which would list what it did not write."""
        reason = ""
        with _silence_orbax(), warnings.catch_warnings(action="ignore"):
            try:
                write()
            except Exception as error:  # Orbax raises plain `Exception`, too
                reason = _first_line(error)
            if not reason:
                return
            step, self._saving, manager, self._manager = self._saving, None, self._manager, None
            if manager is not None:
                with contextlib.suppress(Exception):  # the same failure again
                    manager.close()
        steps = self.steps()
        last = f"the last intact one is of step {steps[-1]}" if steps else "there is none yet"
        self._notify(f"the checkpoint of step {step} could not be written: {reason}; {last}; training continues")


def _get_accuracy(metrics: PyTree) -> float:
    return metrics["accuracy"]


class _DrainingEventLoop(asyncio.SelectorEventLoop):
    """An event loop that completes all tasks before it closes.

    If one array cannot be read or written, Orbax closes its event loop while other arrays are still in progress. When
    these end, Python prints hundreds of lines: "Exception ignored in: <coroutine ...>", "Event loop is closed".
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _silence_orbax() -> Iterator[None]:
    """Suppresses what Orbax and its threads print when they fail; callers report failures in one line."""
    logger, new_event_loop = logging.getLogger("absl"), asyncio.new_event_loop

    def is_foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in pathlib.Path(record.pathname).parts

    logger.addFilter(is_foreign)
    asyncio.new_event_loop = _DrainingEventLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = new_event_loop
        logger.removeFilter(is_foreign)


def _to_tree(state: TrainState) -> dict[str, PyTree]:
    """Returns the non-empty fields as plain dicts of arrays, with the key as its uint32 data."""
    fields = state._asdict()
    if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        if isinstance(state.key, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, state.key)
            fields["key"] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=state.key.sharding)
        else:
            fields["key"] = jax.random.key_data(state.key)
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _to_restorable_tree(target: TrainState, shapes: _Shapes) -> dict[str, PyTree]:
    """Returns `_to_tree(target)` with the key as it was saved, because its size depends on the PRNG implementation."""
    tree = _to_tree(target)
    if jnp.issubdtype(target.key.dtype, jax.dtypes.prng_key) and "key" in shapes:
        dtype, *dimensions = shapes["key"]
        tree["key"] = jax.ShapeDtypeStruct(tuple(dimensions), jnp.dtype(dtype), sharding=tree["key"].sharding)
    return tree


def _from_tree(tree: dict[str, PyTree], target: TrainState, key_impl: str | None) -> TrainState:
    state = target._replace(**tree)
    if jnp.issubdtype(target.key.dtype, jax.dtypes.prng_key):
        if key_impl is None and state.key.shape != jax.random.key_data(jax.random.key(0)).shape:
            key_impl = {2: "threefry2x32", 4: "rbg"}.get(state.key.shape[-1])  # older checkpoints lack the name
        state = state._replace(key=jax.random.wrap_key_data(state.key, impl=key_impl))
    return state


def _key_impl(key: jax.Array) -> str | None:
    """Returns the name of a key's PRNG implementation; None for a raw uint32 key."""
    return str(jax.random.key_impl(key)) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else None


def _shapes(tree: PyTree) -> _Shapes:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [jnp.dtype(leaf.dtype).name, *leaf.shape]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_fit(path: AnyPath, saved: _Shapes, expected: _Shapes) -> None:
    """Raises CheckpointMismatchError, which names the first arrays that differ, unless shapes and types are equal."""
    differences = [name for name in {**expected, **saved} if expected.get(name) != saved.get(name)]
    if differences:
        described = (f"{name} is {_format(saved, name)}, not {_format(expected, name)}" for name in differences[:3])
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointMismatchError(
            f"{path} is intact but does not fit the configuration: {', '.join(described)}{more}"
        )


def _format(shapes: _Shapes, name: str) -> str:
    if name not in shapes:
        return "missing"
    dtype, *dimensions = shapes[name]
    return f"{dtype}[{','.join(map(str, dimensions))}]"


def _checksums(tree: PyTree) -> dict[str, int]:
    """Returns a checksum for each array, by path; independent of the devices."""
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: int(value) for name, value in jax.device_get(_checksum_arrays(arrays)).items()}


@jax.jit
def _checksum_arrays(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _checksum(array) for name, array in arrays.items()}


def _checksum(array: Array) -> UInt32[Array, ""]:
    """Sums, modulo 2^32, each word mixed with its index; integer sums do not depend on the order of summation."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = (words ^ (index * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _seal(metadata: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(metadata, sort_keys=True)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


def _unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
        raise OSError("checksum mismatch in the metadata")
    return json.loads(sealed["text"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
