"""The asyncio twin of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from tfrec.client import calls
from tfrec.client.attempts import Attempts, RefusedError
from tfrec.client.base import Base
from tfrec.client.calls import Call, Model, Options
from tfrec.client.results import ModelInfo, Result
from tfrec.client.tls import Tls

T = TypeVar("T")


class AsyncClient(Base):
    """Asks a served recommender from one event loop; arguments, answers and errors are those of Client.

    Over REST each call takes a thread of the loop's default executor while it waits.

    Example:
        >>> async with AsyncClient("127.0.0.1:8500", "shop") as client:
        ...     await asyncio.gather(client.search("fruit"), client.similar("apple"))
    """

    @staticmethod
    def _open(target: str, model: Model, tls: Tls | None) -> Any:
        if "://" in target:
            from tfrec.client.rest_transport import AsyncRestTransport

            return AsyncRestTransport(target, model, tls)
        from tfrec.client.grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(target, model, tls)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def recommend(
        self,
        user_id: str = "",
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        k: int = 10,
        nprobe: int | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """As Client.recommend."""
        return await self.ask(calls.recommend(self._form, user_id, history, exclude, k, nprobe, **options))

    async def search(
        self,
        query: str,
        exclude: Sequence[str] = (),
        k: int = 10,
        user_id: str = "",
        history: Sequence[str] = (),
        nprobe: int | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """As Client.search."""
        return await self.ask(calls.search(self._form, query, exclude, k, user_id, history, nprobe, **options))

    async def similar(
        self, item_id: str, exclude: Sequence[str] = (), k: int = 10, nprobe: int | None = None
    ) -> list[Result]:
        """As Client.similar."""
        return await self.ask(calls.similar(self._form, item_id, exclude, k, nprobe))

    async def rank(
        self,
        user_id: str,
        history: Sequence[str],
        item_ids: Sequence[str],
        weights: Mapping[str, float] | None = None,
        context: Mapping[str, str | float] | None = None,
    ) -> list[Result]:
        """As Client.rank."""
        return await self.ask(calls.rank(self._form, user_id, history, item_ids, weights, context))

    async def info(self) -> ModelInfo:
        """As Client.info."""
        attempts = self._attempts("info")
        versions = await _retried(attempts, self._transport.status)
        found = ModelInfo(self.model, versions, {})
        if not found.available:
            return found
        return ModelInfo(self.model, versions, await _retried(attempts, self._transport.signatures))

    async def ask(self, call: Call) -> list[Result]:
        """As Client.ask."""
        attempts = self._attempts(call.signature)
        outputs = await _retried(attempts, lambda seconds: self._transport.predict(call, seconds))
        return self._read(call, outputs)


async def _retried(attempts: Attempts, attempt: Callable[[float], Awaitable[T]]) -> T:
    while True:
        try:
            return await attempt(attempts.seconds_left())
        except RefusedError as refusal:
            pause = attempts.pause_after(refusal)
        await asyncio.sleep(pause)
