"""The client that waits for its answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from tfrec.client import calls
from tfrec.client.attempts import Attempts, RefusedError
from tfrec.client.base import Base
from tfrec.client.calls import Call, Model, Options
from tfrec.client.results import ModelInfo, Result
from tfrec.client.tls import Tls

T = TypeVar("T")


class Client(Base):
    """Asks a served recommender; threads may share one.

    Args:
        target: host:port for gRPC; http://host:port or https://host:port for REST.
        model: name under which it is served.
        timeout: seconds until a call fails, retries included.
        version, label: of the model, at most one of them; neither = the version that the server chooses.
        retry: of calls that find the server UNAVAILABLE.
        tls: certificates; None = no encryption for gRPC, the system's certificates for https.
        batched: form of the requests for a server with ``--enable_batching``; None = as short as they are.

    Raises:
        ConfigError: a target, version or certificates that cannot be used.

    Example:
        >>> with Client("127.0.0.1:8500", "shop") as client:
        ...     client.recommend(history=["apple"], k=3)
    """

    @staticmethod
    def _open(target: str, model: Model, tls: Tls | None) -> Any:
        # Whoever speaks REST needs no grpc.
        if "://" in target:
            from tfrec.client.rest_transport import RestTransport

            return RestTransport(target, model, tls)
        from tfrec.client.grpc_transport import GrpcTransport

        return GrpcTransport(target, model, tls)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def recommend(
        self,
        user_id: str = "",
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        k: int = 10,
        nprobe: int | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """The k best items for a user, best first.

        Args:
            user_id: "" = unknown.
            history: item ids, oldest first.
            exclude: item ids that must not be returned.
            k: items wanted, at least 1.
            nprobe: buckets of an inverted file to look into; None = as the export found enough. Others refuse it.
            options: of a recommender with a ranker, see :class:`Options`; others refuse them.

        Raises:
            ConfigError: k is no int32, or ids are no strings.
            CallError: the server cannot be reached or refuses the request; carries its code and words.
        """
        return self.ask(calls.recommend(self._form, user_id, history, exclude, k, nprobe, **options))

    def search(
        self,
        query: str,
        exclude: Sequence[str] = (),
        k: int = 10,
        user_id: str = "",
        history: Sequence[str] = (),
        nprobe: int | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """The k items that fit a text best; arguments and errors as for recommend."""
        return self.ask(calls.search(self._form, query, exclude, k, user_id, history, nprobe, **options))

    def similar(
        self, item_id: str, exclude: Sequence[str] = (), k: int = 10, nprobe: int | None = None
    ) -> list[Result]:
        """The k items most like one item; arguments and errors as for recommend."""
        return self.ask(calls.similar(self._form, item_id, exclude, k, nprobe))

    def rank(
        self,
        user_id: str,
        history: Sequence[str],
        item_ids: Sequence[str],
        weights: Mapping[str, float] | None = None,
        context: Mapping[str, str | float] | None = None,
    ) -> list[Result]:
        """The given items, best first; unknown ones come last with the lowest float32.

        Args:
            weights: of the value formula of a recommender with a ranker.
            context: values of a ranker's context features, such as the text of a query.
        """
        return self.ask(calls.rank(self._form, user_id, history, item_ids, weights, context))

    def info(self) -> ModelInfo:
        """Versions with their states, and the signatures of the one that answers; errors as for recommend."""
        attempts = self._attempts("info")
        versions = _retried(attempts, self._transport.status)
        found = ModelInfo(self.model, versions, {})
        if not found.available:
            return found
        return ModelInfo(self.model, versions, _retried(attempts, self._transport.signatures))

    def ask(self, call: Call) -> list[Result]:
        """Sends a request of tfrec.client.calls; errors as for recommend."""
        outputs = _retried(self._attempts(call.signature), lambda seconds: self._transport.predict(call, seconds))
        return self._read(call, outputs)


def query(target: str, model: str, *, timeout: float = 10.0, **asked: Any) -> list[Result]:
    """Asks once: a text is searched, an item_id gets similar items, item_ids are ranked, else items are recommended.

    Args:
        asked: user_id, history, text, item_id, item_ids, exclude and k.

    Raises:
        ConfigError: more than one of text, item_id and item_ids is given.
        CallError: as for Client.recommend.
    """
    call = calls.choose(None, **asked)
    with Client(target, model, timeout) as client:
        return client.ask(call)


def _retried(attempts: Attempts, attempt: Callable[[float], T]) -> T:
    while True:
        try:
            return attempt(attempts.seconds_left())
        except RefusedError as refusal:
            time.sleep(attempts.pause_after(refusal))
