"""The entry point of the `dropcluster` command."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from dropcluster_jax import __version__
from dropcluster_jax._optional import install_command
from dropcluster_jax.cli.errors import describe, exit_failure, exit_usage


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exits with status 2 and a short message if the input is invalid.

    Args:
        arguments: Command-line arguments; `sys.argv[1:]` if None.
    """
    if arguments is None:  # the process is the command's own
        _adapt_messages_of_libraries()
    with _printable_output():
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            _discard_output()
        except OSError as error:
            exit_failure(describe(error))
        finally:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                _discard_output()
            except OSError as error:
                _discard_output()
                exit_failure(f"the output could not be written: {describe(error)}")


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(f"dropcluster-jax {__version__}")
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides XLA's notes about the machine
    try:
        from dropcluster_jax.cli.parser import parse
    except ImportError as error:
        exit_usage(f"{error}; the command needs an extra: {install_command('train')}")
    from dropcluster_jax.cache import compilation_cache

    action = parse(arguments)
    with compilation_cache():
        action()


def _adapt_messages_of_libraries() -> None:
    """Prints warnings in a line, and hides what is reported or handled: failed saves, large images, damaged EXIF data.

    Orbax and TensorStore print tracebacks from their threads, also after the command's last line.
    """
    warnings.formatwarning = lambda message, *_: f"dropcluster: note: {message}\n"
    warnings.filterwarnings("ignore", module="PIL")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    sys.unraisablehook = lambda error: (
        None if str(error.exc_value) == "Event loop is closed" else sys.__unraisablehook__(error)
    )


@contextlib.contextmanager
def _printable_output() -> Iterator[None]:
    """Makes stdout and stderr accept any text: if they are closed, or if their encoding lacks a character."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # without this, a file that is opened later would become stdout or stderr
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield


def _discard_output() -> None:
    """Discards further output, because the reader of the output has exited, e.g. `head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
