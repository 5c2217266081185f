"""Native calls of a load give way to requests; the thread that loads keeps its priority, as everything else does."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tfrec.server import background
from tfrec.server.background import native, quiet

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@linux
def test_a_call_in_a_quiet_block_gives_way_and_its_caller_does_not():
    usual = niceness()
    with quiet():
        assert native(niceness) == min(usual + 10, 19)
        assert niceness() == usual
    assert native(niceness) == usual


def test_calls_are_made_here_unless_they_are_quiet(monkeypatch):
    here = threading.get_ident()
    assert native(threading.get_ident) == here
    with quiet(False):
        assert native(threading.get_ident) == here
    monkeypatch.setattr(background.sys, "platform", "darwin")
    with quiet():
        assert native(threading.get_ident) == here


def test_other_threads_are_not_quiet():
    found = []
    with quiet():
        thread = threading.Thread(target=lambda: found.append(native(threading.get_ident) == threading.get_ident()))
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize("wanted", [True, False])
def test_results_and_errors_come_through(wanted):
    with quiet(wanted):
        assert native(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            native(divmod, 7, 0)


def test_a_system_that_forbids_it_loads_at_the_usual_priority(monkeypatch):
    def forbid(*given: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(background.os, "setpriority", forbid)
    with quiet():
        assert native(divmod, 7, 2) == (3, 1)
