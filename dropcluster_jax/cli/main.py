"""The entry point of the `dropcluster` command."""

import os
import sys

from dropcluster_jax import __version__
from dropcluster_jax.cli.errors import exit_usage


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 2 and a short message if the input is invalid.

    Args:
        arguments: Command-line arguments; `sys.argv[1:]` if None.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"dropcluster-jax {__version__}")
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides XLA's notes about the machine
    try:
        from dropcluster_jax.cli.parser import parse
    except ImportError as error:
        exit_usage(f'{error}; the command needs an extra: pip install "dropcluster-jax[train]"')
    from dropcluster_jax.cache import compilation_cache

    action = parse(arguments)
    try:
        with compilation_cache():
            action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has exited, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
