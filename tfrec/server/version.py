"""One version of a model: its state, and how many requests are using it."""

from __future__ import annotations

import threading
from pathlib import Path

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from tfrec.server.servable import Servable
from tfrec.server.status import RequestError

START, LOADING, AVAILABLE = ModelVersionStatus.START, ModelVersionStatus.LOADING, ModelVersionStatus.AVAILABLE
UNLOADING, END = ModelVersionStatus.UNLOADING, ModelVersionStatus.END


class Version:
    """A version from the moment that it is wanted until it is gone.

    Args:
        name: of the model.
        number: of the version.
        path: of its folder.
    """

    def __init__(self, name: str, number: int, path: Path):
        self.name, self.number, self.path = name, number, path
        self.state: int = START
        self.error: RequestError | None = None
        self.servable: Servable | None = None
        self.wanted = True
        self._users, self._closing = 0, False
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.number}}}"

    def acquire(self) -> Servable | None:
        """Counts a request in; None when the version is being unloaded. Every acquire needs a release."""
        with self._lock:
            if self._closing:
                return None
            self._users += 1
            return self.servable

    def release(self) -> None:
        """Counts a request out."""
        with self._lock:
            self._users -= 1
            if self._closing and not self._users:
                self._idle.notify_all()

    def unload(self) -> None:
        """Lets no request in, waits for the last one to leave and frees the model."""
        with self._idle:
            self._closing = True
            while self._users:
                self._idle.wait()
        if self.servable is not None:
            self.servable.close()
            self.servable = None

    def proto(self) -> ModelVersionStatus:
        """The version as GetModelStatus reports it."""
        status = ModelVersionStatus(version=self.number, state=self.state)
        status.status.error_code = self.error.number if self.error else 0
        status.status.error_message = str(self.error) if self.error else ""
        return status
