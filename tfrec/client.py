"""A client of any TensorFlow Serving that serves a recommender, over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfrec.errors import ConfigError, ServerError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Result:
    """One recommended item; higher scores are better and compare within one answer only."""

    item_id: str
    score: float


class Client:
    """Asks a served recommender, one request at a time.

    Args:
        target: the server's host:port.
        model: name under which it is served.
        timeout: seconds until an unanswered request fails.

    Example:
        >>> with Client("127.0.0.1:8500", "shop") as client:
        ...     client.recommend(history=["apple"], k=3)
    """

    def __init__(self, target: str, model: str, timeout: float = 10.0):
        import grpc
        from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

        self.target, self.model, self.timeout = target, model, timeout
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=unlimited)
        self._stub = PredictionServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def recommend(
        self, user_id: str = "", history: Sequence[str] = (), exclude: Sequence[str] = (), k: int = 10
    ) -> list[Result]:
        """The k best items for a user, best first.

        Args:
            user_id: "" = unknown.
            history: item ids, oldest first.
            exclude: item ids that must not be returned.
            k: items wanted, at least 1.

        Raises:
            ServerError: the server cannot be reached or refuses the request; carries its words.
        """
        inputs = {"user_id": [user_id], "history": [history], "exclude": [exclude]}
        return self._items("recommend", inputs, k)

    def search(self, query: str, exclude: Sequence[str] = (), k: int = 10) -> list[Result]:
        """The k items that fit a text best; arguments and errors as for recommend."""
        return self._items("search", {"query": [query], "exclude": [exclude]}, k)

    def similar(self, item_id: str, exclude: Sequence[str] = (), k: int = 10) -> list[Result]:
        """The k items most like one item; arguments and errors as for recommend."""
        return self._items("similar", {"item_id": [item_id], "exclude": [exclude]}, k)

    def rank(self, user_id: str, history: Sequence[str], item_ids: Sequence[str]) -> list[Result]:
        """The given items, best first; unknown ones come last with the lowest float32."""
        inputs = {"user_id": [user_id], "history": [history], "item_ids": [item_ids]}
        scores = self._predict("rank", {alias: _strings(value) for alias, value in inputs.items()})["scores"][0]
        results = [Result(item, float(score)) for item, score in zip(item_ids, scores, strict=True)]
        return sorted(results, key=lambda result: -result.score)

    def _items(self, signature: str, inputs: dict[str, Any], k: int) -> list[Result]:
        import numpy as np

        if k >= 2**31:
            raise ConfigError("k must be below 2147483648, an int32", k)
        arrays = {alias: _strings(value) for alias, value in inputs.items()}
        answer = self._predict(signature, {**arrays, "k": np.array(k, np.int32)})
        pairs = zip(answer["item_ids"][0], answer["scores"][0], strict=True)
        return [Result(item.decode(), float(score)) for item, score in pairs if item]  # "" fills a short answer

    def _predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        request = PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
        try:
            response = self._stub.Predict(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._explain(signature, error) from error
        return {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}

    def _explain(self, signature: str, error: Any) -> ServerError:
        code = error.code().name
        advice = {
            "UNAVAILABLE": "Start the server or correct the address",
            "DEADLINE_EXCEEDED": f"Raise the timeout of {self.timeout} s or look at the server's load",
        }.get(code, "")
        words = (error.details() or "").split("\n")[0]  # what follows is the trace of graph nodes
        asked = f"{signature} of model {self.model} at {self.target}"
        return ServerError(f"{asked} must answer", f"{code}: {words}", advice)


def query(
    target: str,
    model: str,
    *,
    user_id: str = "",
    history: Sequence[str] = (),
    text: str = "",
    item_id: str = "",
    item_ids: Sequence[str] = (),
    exclude: Sequence[str] = (),
    k: int = 10,
    timeout: float = 10.0,
) -> list[Result]:
    """Asks once: a text is searched, an item_id gets similar items, item_ids are ranked, else items are recommended.

    Raises:
        ConfigError: more than one of text, item_id and item_ids is given.
        ServerError: as for Client.recommend.
    """
    given = [name for name, value in (("text", text), ("item_id", item_id), ("item_ids", item_ids)) if value]
    if len(given) > 1:
        raise ConfigError("a query takes one of text, item_id and item_ids", " and ".join(given))
    with Client(target, model, timeout) as client:
        if text:
            return client.search(text, exclude, k)
        if item_id:
            return client.similar(item_id, exclude, k)
        if item_ids:
            return client.rank(user_id, history, item_ids)
        return client.recommend(user_id, history, exclude, k)


def _strings(value: Any) -> np.ndarray:
    import numpy as np

    text = np.array(value, dtype=object)
    return np.array([item.encode() for item in text.ravel()], dtype=object).reshape(text.shape)
