"""A signal is heard in whatever line the server waits."""

import subprocess
import sys

import pytest

WAITS = """
import os, signal, sys, threading
from {module} import {name}

def signal_in_event(number):
    # Whether the waiting thread came that far before it was set.
    stop, seen = {name}(), 0
    def trace(frame, event, argument):
        nonlocal seen
        seen += 1
        if seen == number:
            signal.raise_signal(signal.SIGTERM)
        return trace
    signal.signal(signal.SIGTERM, lambda *_: (sys.settrace(None), stop.set()))
    late = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM])
    late.start()
    sys.settrace(trace)
    stop.wait()
    sys.settrace(None)
    late.cancel()
    return seen >= number

number = 1
while signal_in_event(number):
    number += 1
print(number)
"""


def waits(module: str, name: str, seconds: float) -> int:
    """The number of steps of a wait, each of which a signal interrupted."""
    script = WAITS.format(module=module, name=name)
    run = subprocess.run([sys.executable, "-c", script], timeout=seconds, capture_output=True, check=True)
    return int(run.stdout)


def test_a_signal_ends_the_wait_wherever_it_interrupts_it():
    assert waits("tfrec.server.stop", "Stop", 60) > 1


def test_the_check_finds_the_lock_of_an_event():
    with pytest.raises(subprocess.TimeoutExpired):
        waits("threading", "Event", 5)
