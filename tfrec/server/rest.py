"""TensorFlow Serving's REST API: what a method, a path and a body ask for, and the answer.

Reference: tensorflow_serving/model_servers/{http_rest_api_handler,http_rest_api_util,http_server}.cc.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from tfrec.server import json_request, json_response
from tfrec.server.api import SIGNATURE_DEF, Api
from tfrec.server.json_text import parse
from tfrec.server.servable import DEFAULT_SIGNATURE, Servable
from tfrec.server.status import RequestError, invalid

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_LOOK = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<metadata>metadata))?", re.IGNORECASE)
_API = re.compile(r"/v1/.*", re.IGNORECASE)
_LARGEST, _DIGITS = 2**63 - 1, 19
_STATUS = {
    "OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400,
    "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501, "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}  # fmt: skip
_NOT_FOUND = (
    "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"  # libevent's
)
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_ORIGIN = re.compile("https?://")
PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


class _NoNumberError(Exception):
    """The version in a path is no int64."""


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    kind: str
    body: bytes


class Rest:
    """The REST API over an Api.

    Args:
        metrics_path: where the Prometheus page lies; "" = nowhere.
        timeout_seconds: for a request, waiting included.
        cors: whether browsers may ask from pages of other origins.
    """

    def __init__(self, api: Api, metrics_path: str = "", timeout_seconds: float = 30.0, cors: bool = False):
        self._api, self._metrics_path, self.timeout_seconds = api, metrics_path, timeout_seconds
        self.headers = _CORS if cors else {}

    def answer(self, method: str, path: str, body: bytes, origin: str = "") -> Answer:
        """Answers a request, whatever it is.

        Args:
            origin: of the page that a browser asks from.
        """
        if self._metrics_path and path.partition("?")[0] == self._metrics_path:
            return self._metrics(path)
        if not _API.fullmatch(path):
            return Answer(404, "text/html", _NOT_FOUND.encode())
        if method == "OPTIONS" and self.headers:
            return _json(200 if _ORIGIN.search(origin) else 400, "")
        try:
            return _json(200, self._dispatch(method, path, body))
        except _NoNumberError:
            return _json(400, "")  # TensorFlow Serving's handler leaves before it writes the error
        except RequestError as error:
            return refusal(error)
        except RecursionError:
            return refusal(invalid("JSON Parse error: Terminate parsing due to Handler error. at offset: 0"))

    def _dispatch(self, method: str, path: str, body: bytes) -> str:
        call, look = _CALL.fullmatch(path), _LOOK.fullmatch(path)
        if method == "POST" and call:
            spec, name = _spec(call), call["method"]
            if name.islower():  # as the path may be written in capitals, the method may not
                return self._api.measured(spec.name, name, "REST", self._call, name, spec, body)
        if method == "GET" and look:
            if not look["name"]:
                raise invalid("Missing model name in request.")
            return self._metadata(_spec(look)) if look["metadata"] == "metadata" else self._model_status(_spec(look))
        raise invalid(f"Malformed request: {method} {path}")

    def _metrics(self, path: str) -> Answer:
        if path != self._metrics_path:
            return Answer(400, "text/plain", f"Unexpected path: {path}. Should be {self._metrics_path}".encode())
        return Answer(200, "text/plain", self._api.metrics.page().encode())

    def _call(self, method: str, spec: ModelSpec, body: bytes) -> str:
        deadline = time.monotonic() + self.timeout_seconds
        document = parse(body)
        spec.signature_name = json_request.signature_name(document)
        if method == "predict":
            return self._predict(spec, document, deadline)
        examples = json_request.examples_input(document)
        if method == "classify":
            request = ClassificationRequest(model_spec=spec, input=examples)
            return json_response.classifications(self._api.classify(request, deadline).result)
        regression = RegressionRequest(model_spec=spec, input=examples)
        return json_response.regressions(self._api.regress(regression, deadline).result)

    def _predict(self, spec: ModelSpec, document: dict[str, Any], deadline: float) -> str:
        with self._api.manager.using(spec) as (servable, _):
            inputs, rows = json_request.predict_inputs(document, _inputs(servable, spec.signature_name))
            outputs: dict[str, np.ndarray] = servable.run(spec.signature_name, inputs, deadline=deadline)
        return (json_response.predictions if rows else json_response.columns)(outputs)

    def _model_status(self, spec: ModelSpec) -> str:
        return _proto_json(self._api.status(GetModelStatusRequest(model_spec=spec)))

    def _metadata(self, spec: ModelSpec) -> str:
        response = self._api.metadata(GetModelMetadataRequest(model_spec=spec, metadata_field=[SIGNATURE_DEF]))
        with self._api.manager.using(spec) as (servable, _):
            signatures = _proto_json(servable.signature_defs)
        return (
            f'{{\n"model_spec":{_proto_json(response.model_spec)},\n'
            f'"metadata": {{"{SIGNATURE_DEF}": {signatures}}}\n}}\n'
        )


def refusal(error: RequestError) -> Answer:
    """The JSON form of an error."""
    return _json(_STATUS[error.code], json_response.error(str(error)))


def _json(status: int, text: str) -> Answer:
    return Answer(status, "application/json", text.encode("utf-8", "surrogateescape"))


def _spec(found: re.Match[str]) -> ModelSpec:
    spec = ModelSpec(name=_unescaped(found["name"]))
    if found["version"]:
        if len(found["version"].lstrip("0")) > _DIGITS or int(found["version"]) > _LARGEST:
            raise _NoNumberError
        spec.version.value = int(found["version"])
    if found["label"]:
        spec.version_label = _unescaped(found["label"])
    return spec


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _inputs(servable: Servable, signature: str) -> json_request.Infos:
    name = signature or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    inputs = servable.signatures[name].inputs
    if not inputs:
        raise invalid(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    return inputs


def _proto_json(message: Any) -> str:
    tree = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(_choices_last(message.DESCRIPTOR, tree), indent=1, ensure_ascii=False) + "\n"


def _choices_last(kind: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Members in the order of protobuf's C++ writer: as declared, and what is chosen of a oneof at the end."""
    fields = [kind.fields_by_name[name] for name in tree]
    fields.sort(key=lambda field: (field.containing_oneof is not None, field.index))
    return {field.name: _ordered(field, tree[field.name]) for field in fields}


def _ordered(field: Any, value: Any) -> Any:
    kind = field.message_type
    if kind is None or isinstance(value, str):
        return value
    if kind.GetOptions().map_entry:
        entry = kind.fields_by_name["value"]
        return {key: _ordered(entry, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_choices_last(kind, part) for part in value]
    return _choices_last(kind, value)
