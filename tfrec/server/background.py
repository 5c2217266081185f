"""Work that must not slow requests down: native calls at a low priority of the operating system.

A thread of low priority that holds the interpreter lock would hold up every request, so that the Python code of a load
keeps its priority. Its long native calls, which let go of the lock, run in threads of their own that give theirs up:
a thread without privileges cannot get it back.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

_NICER = 10  # a tenth of the share of a request where both want the processor, and never nothing
_quiet = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Inside the block the native calls of this thread give way to everything else."""
    token = _quiet.set(wanted and sys.platform == "linux")  # elsewhere threads have no priority of their own
    try:
        yield
    finally:
        _quiet.reset(token)


def native(call: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a call that lets go of the interpreter lock, and returns its result.

    Args:
        call: starts no threads that outlive it, as they would inherit the priority.

    Raises:
        Exception: whatever the call raises.
    """
    if not _quiet.get():
        return call(*arguments)
    result: Future[Any] = Future()
    threading.Thread(target=_run, args=[result, call, arguments], name="quiet").start()
    return result.result()


def _run(result: Future[Any], call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)
    try:
        result.set_result(call(*arguments))
    except BaseException as error:  # it belongs to the caller, who waits
        result.set_exception(error)
