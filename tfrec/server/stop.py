"""SIGTERM and SIGINT, heard by a thread that waits."""

from __future__ import annotations

import os
import signal
from typing import Any


class Stop:
    """Is set by the first SIGTERM or SIGINT; the second ends the process at once.

    Handlers of Python run in the main thread, between two of its steps: neither a signal that another thread received
    nor one that came just before the main thread went to sleep on a lock would wake it. The wake-up descriptor is
    written to by whoever is interrupted, and stays readable.

    Raises:
        ValueError: this is not the main thread.
    """

    def __init__(self) -> None:
        self._asked = False
        self._wake, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def is_set(self) -> bool:
        return self._asked

    def wait(self) -> None:
        """Returns once it is set."""
        while not self._asked:
            os.read(self._wake, 1)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            os._exit(1)
        self._asked = True
