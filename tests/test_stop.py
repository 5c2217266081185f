"""A signal is heard wherever it interrupts the server, and whichever thread it interrupts."""

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, sys, threading
from tfrec.server.stop import Stop
"""
IN_EVERY_STEP = """
def is_interrupted(number):
    # Whether the wait has that many steps.
    stop, seen = Stop(), 0
    def trace(frame, event, argument):
        nonlocal seen
        seen += frame.f_code is Stop.wait.__code__
        if seen == number and not stop.is_set():
            sys.settrace(None)
            signal.raise_signal(signal.SIGTERM)
        return trace
    late = threading.Timer(0.5, lambda: seen >= number or signal.raise_signal(signal.SIGTERM))
    late.start()
    sys.settrace(trace)
    stop.wait()
    sys.settrace(None)
    late.join()
    return seen >= number

number = 1
while is_interrupted(number):
    number += 1
print(number)
"""
IN_ANOTHER_THREAD = """
stop = Stop()
threading.Timer(0.5, signal.raise_signal, [signal.{name}]).start()
stop.wait()
print(stop.is_set())
"""
TWICE = """
stop = Stop()
signal.raise_signal(signal.SIGINT)
stop.wait()
print(stop.is_set(), flush=True)
signal.raise_signal(signal.SIGTERM)
print("still here")
"""


def run(script: str) -> tuple[int, str]:
    """Exit code and output; a wait without end fails."""
    done = subprocess.run([sys.executable, "-c", BEGIN + script], timeout=60, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def test_a_signal_ends_the_wait_wherever_it_interrupts_it():
    code, steps = run(IN_EVERY_STEP)
    assert code == 0 and int(steps) > 3


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_another_thread_receives_ends_the_wait(name):
    assert run(IN_ANOTHER_THREAD.format(name=name)) == (0, "True")


def test_a_second_signal_ends_the_process():
    assert run(TWICE) == (1, "True")


def test_only_the_main_thread_may_listen():
    code, said = run(
        "import concurrent.futures as futures\n"
        "print(type(futures.ThreadPoolExecutor().submit(Stop).exception()).__name__)"
    )
    assert (code, said) == (0, "ValueError")
