"""What a signal asks for, waited for by the very thread that the signal interrupts."""

from __future__ import annotations

from queue import SimpleQueue


class Stop:
    """An event that a signal handler may set while its own thread waits.

    ``threading.Event`` holds a lock in the steps before it sleeps: a handler that runs there and sets it waits for
    that lock for ever. ``SimpleQueue.put`` may be called again from anywhere.
    """

    def __init__(self) -> None:
        self._asked = False
        self._told: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self._asked = True
        self._told.put(None)

    def is_set(self) -> bool:
        return self._asked

    def wait(self) -> None:
        """Returns once it is set. Only one thread may wait, once."""
        self._told.get()
