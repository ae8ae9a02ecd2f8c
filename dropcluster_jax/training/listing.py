"""Which runs a folder holds, and how they went: what `dropcluster runs` shows."""

import os
import pathlib
from typing import Any

from dropcluster_jax.training.folder import is_run, read_config, read_records, read_summary


def list_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A dict for each run in a folder and the folders within, by their names; links to folders are not followed.

    Args:
        folder: to look in.

    Returns:
        For each run `run`, its folder; `method`, `rate`, `model`, `data`, `seed`; `step`, the last that was recorded;
        `finished`; `test_accuracy`, that of the last evaluation, in [0, 1], or None; and `seconds`, None where the run
        is not finished. Of a run that cannot be read `run` and `error`.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.

    Example:
        >>> list_runs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no folder /nowhere
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    runs = [_described(path.parent) for path in sorted(root.rglob("config.json")) if is_run(path.parent)]
    if not runs:
        raise FileNotFoundError(f"{root} holds no run; `dropcluster train digits --out {root}/digits` makes one")
    return runs


def _described(folder: pathlib.Path) -> dict[str, Any]:
    try:
        config, _ = read_config(folder)
        summary = read_summary(folder)
        records = read_records(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        tests = [record["accuracy"] for record in records if record["event"] == "test"]
        seconds = summary["seconds"] if summary is not None else None
    except (ValueError, OSError) as error:
        return {"run": str(folder), "error": str(error)}
    except KeyError as error:
        return {"run": str(folder), "error": f"its files are damaged: there is no {error}"}
    return {
        "run": str(folder),
        "method": config.drop.method,
        "rate": config.drop.rate if config.drop.method != "none" else 0.0,
        "model": config.model,
        "data": config.data.name,
        "seed": config.seed,
        "step": records[-1]["step"] if records else 0,
        "finished": summary is not None,
        "test_accuracy": tests[-1] if tests else None,
        "seconds": seconds,
    }
