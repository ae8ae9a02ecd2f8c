"""Checkpoints of a run: written asynchronously and atomically by Orbax, and verified when restored.

A checkpoint holds the whole `TrainState` and a JSON document with the run's metadata (data position, totals), the
accuracy, the PRNG implementation of the key, and the shape and a checksum of each array. Orbax restores flipped
bytes without an error; the checksums detect them.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, PyTree, UInt32

from dropcluster_jax._optional import optional_import
from dropcluster_jax.runs import distributed
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import RunFolderError
from dropcluster_jax.training.steps import TrainState

FORMAT = 3  # incremented whenever other versions cannot read the contents of checkpoints
_DAMAGED = "damaged"


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
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "3").mkdir()  # an empty checkpoint
        >>> state = TrainState({}, {}, {}, (), jax.random.key(0), jnp.array(0))
        >>> try:
        ...     Checkpointer(folder).restore(state)
        ... except CorruptCheckpointError as error:
        ...     print("step 3" in str(error), [path.name for path in folder.iterdir()])
        True ['3']
    """


class CheckpointMismatchError(ValueError):
    """A checkpoint has another format, or is intact but holds other arrays than the requested ones."""


class Checkpointer:
    """Saves and restores the checkpoints of a run.

    With multiple processes, all call each method at the same step, and all can write to the folder.

    Args:
        folder: Folder of the checkpoints, local or at `gs://`, with a subfolder for each step. Created by the first
            save.
        keep: Number of latest checkpoints to keep, in addition to the one with the best accuracy.
        notify: Called with a message if a checkpoint is damaged or cannot be written.

    Raises:
        ImportError: If Orbax is not installed.
        RunFolderError: If the path has a character that is a pattern to Orbax or TensorStore.
        ValueError: If `keep` is less than 1.

    Example:
        >>> import pathlib, tempfile
        >>> params = {"kernel": jnp.arange(3.0)}
        >>> state = TrainState(params, {}, {}, (), jax.random.key(0), jnp.array(7))
        >>> checkpointer = Checkpointer(pathlib.Path(tempfile.mkdtemp(), "checkpoints"))
        >>> checkpointer.save(state, {"note": "first"}, accuracy=0.9)
        >>> checkpointer.wait()
        [7]
        >>> restored = checkpointer.restore(jax.eval_shape(lambda: state))
        >>> restored.metadata, int(restored.state.step), restored.state.params["kernel"].tolist()
        ({'note': 'first'}, 7, [0.0, 1.0, 2.0])
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, notify: Callable[[str], None] = print) -> None:
        with optional_import("Orbax"):
            import orbax.checkpoint
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._orbax = orbax.checkpoint
        path = as_path(folder)
        self.folder = path if path.is_absolute() else path.absolute()  # `absolute` does not know gs://
        if unsafe := set("[]*?\\") & set(str(self.folder)):
            raise RunFolderError(f"the path of checkpoints must not contain {min(unsafe)}, for Orbax: {self.folder}")
        self._keep, self._notify = keep, notify
        self._writer: Any = None  # created by the first save
        self._saving: int | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, intact or not, in ascending order."""
        return sorted(self._orbax.path.step.checkpoint_steps(self.folder))

    def save(self, state: TrainState, metadata: dict[str, Any], accuracy: float | None = None) -> None:
        """Starts writing a checkpoint; returns once the arrays have been copied.

        If this or the previous checkpoint cannot be written, `notify` is called and training can continue.

        Args:
            state: The state to save under its step.
            metadata: A JSON-serializable dict.
            accuracy: The accuracy, in [0, 1], by which the best checkpoint is kept; None if unknown.

        Raises:
            ValueError: If names of arrays differ only by a dot in place of a level, e.g. `x.y` and `x/y`, which Orbax
                writes to the same file.
        """
        step = int(state.step)
        saved = self.wait()
        if step in distributed.in_first_process(lambda: saved, OSError):
            return
        tree = _to_tree(state)
        _check_names(tree)
        document = {
            "format": FORMAT,
            "metadata": metadata,
            "accuracy": accuracy,
            "key_impl": _key_impl(state.key),
            "shapes": _shapes(tree),
            "checksums": _checksums(tree),
        }
        args = self._orbax.args.Composite(
            state=self._orbax.args.StandardSave(tree), run_metadata=self._orbax.args.JsonSave(_seal(document))
        )
        self._remove_all_but(self.steps())  # leftovers of a killed process or of a failed save
        if self._writer is None:
            self._writer = self._orbax.AsyncCheckpointer(self._orbax.CompositeCheckpointHandler())
        self._saving = step
        self._attempt(lambda: self._writer.save(self.folder / str(step), args=args))

    def wait(self) -> list[int]:
        """Waits until the checkpoint that is being written is complete, and removes old ones.

        Returns:
            The steps of all checkpoints.
        """
        if self._saving is not None:
            self._attempt(self._writer.wait_until_finished)
            self._saving = None
            steps = self.steps()
            self._remove_all_but([*steps[-self._keep :], *self._best_first(steps)[:1]])
        return self.steps()

    def close(self) -> None:
        """Waits for the last checkpoint and releases resources."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def restore(
        self, target: TrainState, *, best: bool = False, step: int | None = None, move_damaged: bool = True
    ) -> Restored | None:
        """Restores the latest intact checkpoint, the intact one with the best accuracy, or the one of a step.

        Calls `notify` for each damaged checkpoint that was skipped.

        Args:
            target: The shapes, types and shardings of the arrays. The restored key has the PRNG implementation that was
                saved, whatever that of the target is.
            best: Whether to restore the checkpoint with the best accuracy.
            step: Step of the checkpoint to restore; None for any.
            move_damaged: Whether to move damaged checkpoints to the folder `damaged` next to the checkpoints, so that
                training can save these steps again. Readers pass False: the run may be saving at the same time.

        Returns:
            The restored checkpoint; None if there is no such checkpoint.

        Raises:
            CorruptCheckpointError: If there are checkpoints but none is intact; they are left unchanged.
            CheckpointMismatchError: If a checkpoint has another format, or an intact one does not have the structure
                and shapes of `target`.
        """
        steps = [saved for saved in reversed(self.steps()) if step in (None, saved)]
        damaged: dict[int, str] = {}
        candidates = distributed.in_first_process(lambda: self._best_first(steps) if best else steps, OSError)
        for candidate in candidates:
            restored, reason = self._read(candidate, target)
            if restored is not None:
                for damaged_step, damage in damaged.items():
                    moved = f" and was moved to {self._move(damaged_step, damage)}" if move_damaged else ""
                    self._notify(
                        f"the checkpoint of step {damaged_step} is damaged ({damage}){moved}; using the one of step "
                        f"{candidate}"
                    )
                return restored
            damaged[candidate] = reason
        if not damaged:
            return None
        reasons = "; ".join(f"step {candidate}: {reason}" for candidate, reason in damaged.items())
        raise CorruptCheckpointError(f"{self.folder} has no intact checkpoint ({reasons}); nothing was removed")

    def _read(self, step: int, target: TrainState) -> tuple[Restored | None, str]:
        """Returns a verified checkpoint, or None and the reason; the same in all processes."""
        orbax, path = self._orbax, self.folder / str(step)
        document, tree, reason = {}, None, ""
        try:
            document = _read_document(path)
            item = _to_restorable_tree(target, document["key_impl"])
            _check_fit(path, document["shapes"], _shapes(item))
            with orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as reader:
                tree = reader.restore(path, orbax.args.Composite(state=orbax.args.StandardRestore(item)))["state"]
        except CheckpointMismatchError:
            raise
        except Exception as error:  # Orbax raises plain `Exception`, e.g. for arrays that cannot be read
            reason = _first_line(error)
        if not distributed.all_agree(tree is not None) or tree is None:
            return None, reason or "another process cannot read it"
        actual, expected = _checksums(tree), document["checksums"]
        mismatches = [name for name, checksum in actual.items() if expected.get(name) != checksum]
        if mismatches or set(actual) != set(expected):
            return None, f"checksum mismatch in {', '.join(mismatches[:3]) or 'missing arrays'}"
        return Restored(_from_tree(tree, target, document["key_impl"]), document["metadata"]), ""

    def _move(self, step: int, reason: str) -> epath.Path:
        """Moves a checkpoint to the folder `damaged`, next to a file with the reason, and returns the folder."""
        folder = self.folder.parent / _DAMAGED
        if jax.process_index() == 0:
            names = [str(step), *(f"{step}-{i}" for i in range(2, 1000))]
            name = next(name for name in names if not (folder / name).exists())
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.txt").write_text(f"{reason}\n")
            (self.folder / str(step)).rename(folder / name)
        distributed.barrier("damaged checkpoint was moved")
        return folder

    def _remove_all_but(self, steps: list[int]) -> None:
        """Removes all checkpoints but those of `steps`, including incomplete ones, in the first process."""
        if jax.process_index() == 0 and self.folder.exists():
            for path in self.folder.iterdir():
                if path.name.partition(".")[0].isdecimal() and path.name not in map(str, steps):
                    with contextlib.suppress(OSError):  # a failed save may still write; the next save tries again
                        path.rmtree()

    def _best_first(self, steps: list[int]) -> list[int]:
        """Returns the steps whose accuracy is known, by accuracy; among equals, the latest first."""
        accuracies = {step: self._accuracy(step) for step in sorted(steps, reverse=True)}
        known = {step: value for step, value in accuracies.items() if value is not None and not math.isnan(value)}
        return sorted(known, key=lambda step: known[step], reverse=True)

    def _accuracy(self, step: int) -> float | None:
        try:
            return _read_document(self.folder / str(step))["accuracy"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _attempt(self, write: Callable[[], Any]) -> None:
        """Calls `write` if a checkpoint is being saved; on failure notifies, and gives the checkpoint up."""
        if self._saving is None:
            return
        try:
            write()
        except Exception as error:  # Orbax raises plain `Exception`, too
            steps = self.steps()
            last = f"the last intact one is of step {steps[-1]}" if steps else "there is none yet"
            self._notify(
                f"the checkpoint of step {self._saving} could not be written: {_first_line(error)}; {last}; training "
                "continues"
            )
            self._saving = None


def _to_tree(state: TrainState) -> dict[str, PyTree]:
    """Returns the non-empty fields as plain dicts of arrays, with the key as its uint32 data."""
    fields = state._asdict()
    if _key_impl(state.key) is not None:
        fields["key"] = jax.random.key_data(state.key)
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _check_names(tree: PyTree) -> None:
    names: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        file = jax.tree_util.keystr(path, simple=True, separator="/").replace(".", "/")
        if (other := names.setdefault(file, name)) != name:
            raise ValueError(f"arrays must not share a file of a checkpoint, but {other} and {name} do")


def _to_restorable_tree(target: TrainState, key_impl: str | None) -> dict[str, PyTree]:
    """Returns `_to_tree` of abstract arrays, with the key as it was saved; its size depends on the implementation."""
    if key_impl is not None:
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key_impl)))
        target = target._replace(key=jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=target.key.sharding))
    return _to_tree(target)


def _from_tree(tree: dict[str, PyTree], target: TrainState, key_impl: str | None) -> TrainState:
    state = target._replace(**tree)
    return state if key_impl is None else state._replace(key=jax.random.wrap_key_data(state.key, impl=key_impl))


def _key_impl(key: jax.Array) -> str | None:
    """Returns the name of a key's PRNG implementation; None for a raw uint32 key."""
    return str(jax.random.key_impl(key)) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else None


def _shapes(tree: PyTree) -> dict[str, str]:
    """Returns the type and shape of each array by path, e.g. `float32[3,4]`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_fit(path: epath.Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raises CheckpointMismatchError, which names the first arrays that differ, unless shapes and types are equal."""
    names = [name for name in {**expected, **saved} if expected.get(name) != saved.get(name)]
    if names:
        differences = [f"{name} is {saved.get(name, 'missing')}, not {expected.get(name, 'used')}" for name in names]
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointMismatchError(
            f"{path} is intact but does not fit the configuration: {', '.join(differences[:3])}{more}"
        )


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


def _seal(document: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(document, sort_keys=True)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


def _read_document(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON document of a checkpoint, from the file that Orbax's `JsonSave` writes."""
    sealed = json.loads((path / "run_metadata" / "metadata").read_text())
    if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
        raise OSError("checksum mismatch in the metadata")
    document = json.loads(sealed["text"])
    if document["format"] != FORMAT:
        raise CheckpointMismatchError(f"{path} has format {document['format']}, but this version reads format {FORMAT}")
    return document


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
