import signal
import subprocess
import sys
import threading

import pytest

from dropcluster_jax.runs.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_recorded(number):
    with Preemption() as preemption:
        assert not preemption(1)
        signal.raise_signal(number)
        assert preemption(2) and preemption(3)
    assert (preemption.name, preemption.status) == (number.name, 128 + number)


def test_previous_handlers_are_restored():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with Preemption():
        assert all(signal.getsignal(number) not in before for number in numbers)
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


def test_second_interrupt_raises():
    with pytest.raises(KeyboardInterrupt), Preemption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_other_threads_do_not_handle_signals():
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    def run():
        with Preemption() as preemption:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not preemption(1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.slow
def test_second_interrupt_of_a_process_raises():
    code = (
        "import os, signal\n"
        "from dropcluster_jax.runs.preemption import Preemption\n"
        "with Preemption() as preemption:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(preemption(1), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout == "True\n" and process.stderr.splitlines()[-1] == "KeyboardInterrupt"
