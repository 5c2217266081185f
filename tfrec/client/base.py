"""What the blocking and the asyncio client share."""

from __future__ import annotations

from typing import Any

from tfrec.client.attempts import Attempts, CallError, Retry
from tfrec.client.calls import BatchedForm, Call, Model, Outputs
from tfrec.client.results import Result
from tfrec.client.tls import Tls
from tfrec.errors import ConfigError


class Base:
    """Keeps where to ask and how; a subclass opens the transport."""

    def __init__(
        self,
        target: str,
        model: str,
        timeout: float = 10.0,
        *,
        version: int | None = None,
        label: str = "",
        retry: Retry | None = None,
        tls: Tls | None = None,
        batched: BatchedForm | None = None,
    ):
        if timeout <= 0:
            raise ConfigError("a timeout must be above 0 seconds", timeout)
        self.target, self.model, self.timeout = target, model, timeout
        self._retry, self._form, self._asked = retry or Retry(), batched, Model(model, version, label)
        self._transport = self._open(target, self._asked, tls)

    @staticmethod
    def _open(target: str, model: Model, tls: Tls | None) -> Any:
        raise NotImplementedError

    def _attempts(self, what: str) -> Attempts:
        return Attempts(f"{what} of model {self._asked} at {self.target}", self._retry, self.timeout)

    def _read(self, call: Call, outputs: Outputs) -> list[Result]:
        try:
            return call.read(outputs)
        except (IndexError, TypeError, ValueError) as error:
            rule = f"{call.signature} of model {self._asked} at {self.target} must answer one row of {call.outputs}"
            raise CallError(rule, repr(outputs)[:200], "Is this a recommender?", "UNIMPLEMENTED") from error
