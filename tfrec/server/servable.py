"""One version of one SavedModel, run as TensorFlow Serving runs it: a graph session with the tag "serve"."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow.core.protobuf.config_pb2 import CallableOptions
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow.python.saved_model.loader_impl import SavedModelLoader

from tfrec.errors import ServerError
from tfrec.server.tensors import to_array
from tfrec.server.text_ops import text_op_libraries

DEFAULT_SIGNATURE = "serving_default"


class RequestError(ServerError):
    """A request that the model refuses, in TensorFlow Serving's words.

    Args:
        code: name of the canonical status code, as ``INVALID_ARGUMENT``.
        message: TensorFlow Serving's message.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class TensorInfo:
    """Where a named input or output lives in the graph; shape is None when even the rank is open."""

    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """What one signature takes and gives."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, np.ndarray]
    method: str


class Servable:
    """A loaded SavedModel.

    Args:
        path: the folder that holds saved_model.pb.

    Raises:
        ServerError: the folder is no SavedModel that this runtime can load.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        load_text_ops()
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            meta_graph = _load(self._session, self.path)
        except BaseException:
            self._session.close()
            raise
        self.signatures: Mapping[str, Signature] = read_signatures(meta_graph)
        self._callables: dict[tuple[str, tuple[str, ...]], Callable[..., list[Any]]] = {}
        self._lock = threading.Lock()

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs one signature; safe to call from several threads.

        Args:
            signature: its name; "" means serving_default.
            inputs: an array per input; those with a default may be left out. Strings are object arrays of bytes.
            outputs: the outputs wanted; None or empty means all.

        Returns:
            an array per output.

        Raises:
            RequestError: the request does not fit the signature, or the graph refuses it.
        """
        name = signature or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        feeds = complete_inputs(self.signatures[name], {alias: np.asarray(value) for alias, value in inputs.items()})
        _check_dtypes(self.signatures[name], feeds)
        wanted = _check_outputs(self.signatures[name], outputs or ())
        try:
            values = self._callable(name, wanted)(*feeds.values())
        except tf.errors.OpError as error:
            raise RequestError(error_codes_pb2.Code.Name(error.error_code), error.message) from error
        return {alias: np.asarray(value) for alias, value in zip(wanted, values, strict=True)}

    def close(self) -> None:
        """Frees the session; run must not be called afterwards."""
        self._session.close()

    def _callable(self, name: str, outputs: tuple[str, ...]) -> Callable[..., list[Any]]:
        key = (name, outputs)
        found = self._callables.get(key)
        if found is None:
            signature = self.signatures[name]
            options = CallableOptions(
                feed=[info.tensor for info in signature.inputs.values()],
                fetch=[signature.outputs[alias].tensor for alias in outputs],
            )
            with self._lock:
                # Session.make_callable adds Python's own casts, shape checks and error texts, which TF Serving has not.
                found = self._session._make_callable_from_options(options)
                self._callables[key] = found
        return found


def complete_inputs(signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts inputs in the signature's order and fills those left out from its defaults.

    Raises:
        RequestError: an input is missing or unknown.
    """
    extra, missing = inputs.keys() - signature.inputs.keys(), signature.inputs.keys() - inputs.keys()
    wrong_size = len(inputs) > len(signature.inputs) or (len(inputs) < len(signature.inputs) and not signature.defaults)
    if wrong_size:
        raise RequestError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
            f"len({_braced(inputs)}) != len({_braced(signature.inputs)}). "
            f"Sent extra: {_braced(extra)}. Missing but required: {_braced(missing)}.",
        )
    for alias in sorted(missing - signature.defaults.keys()):
        raise RequestError(
            "INVALID_ARGUMENT",
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias].tensor}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {_braced(inputs)}, or default input alias "
            f"set: {_joined(signature.defaults)}",
        )
    if extra:
        raise RequestError(
            "INVALID_ARGUMENT",
            f"Inputs contains invalid name. Used request inputs: {_joined(inputs.keys() - extra)}, "
            f"request input: {_joined(inputs)}",
        )
    return {alias: inputs[alias] if alias in inputs else signature.defaults[alias] for alias in signature.inputs}


def read_signatures(meta_graph: MetaGraphDef) -> dict[str, Signature]:
    """The signatures of a MetaGraphDef that a request can name."""
    return {
        name: _read_signature(signature)
        for name, signature in meta_graph.signature_def.items()
        if not name.startswith("__saved_model")
    }


@functools.cache
def load_text_ops() -> None:
    """Registers TF-Text's ops from its libraries, where it is installed, without importing it."""
    for library in text_op_libraries():
        tf.load_op_library(str(library))


def _load(session: tf.compat.v1.Session, path: Path) -> MetaGraphDef:
    if not (path / "saved_model.pb").is_file():
        raise ServerError("a version folder must hold saved_model.pb", str(path))
    try:
        with session.graph.as_default():
            # tf.compat.v1.saved_model.load is this with a deprecation notice; v2 has no loader for sessions.
            return SavedModelLoader(str(path)).load(session, [tf.saved_model.SERVING])
    except (tf.errors.OpError, RuntimeError, ValueError, OSError) as error:
        raise ServerError(f"{path} must load as a SavedModel with the tag serve", str(error)) from error


def _read_signature(signature: SignatureDef) -> Signature:
    return Signature(
        inputs={alias: _tensor_info(signature.inputs[alias]) for alias in sorted(signature.inputs)},
        outputs={alias: _tensor_info(signature.outputs[alias]) for alias in sorted(signature.outputs)},
        defaults={alias: to_array(proto) for alias, proto in signature.defaults.items()},
        method=signature.method_name,
    )


def _tensor_info(info: Any) -> TensorInfo:
    shape = info.tensor_shape
    known = None if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)
    return TensorInfo(info.name, tf.as_dtype(info.dtype), known)


def _check_dtypes(signature: Signature, feeds: Mapping[str, np.ndarray]) -> None:
    for i, (alias, value) in enumerate(feeds.items()):
        expected, got = signature.inputs[alias].dtype, tf.as_dtype(value.dtype)
        if got != expected:
            names = [DataType.Name(dtype.as_datatype_enum)[3:].lower() for dtype in (expected, got)]
            raise RequestError("INVALID_ARGUMENT", f"Expects arg[{i}] to be {names[0]} but {names[1]} is provided")


def _check_outputs(signature: Signature, outputs: Sequence[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    for alias in outputs:
        if alias not in signature.outputs:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(signature.outputs)}.",
            )
        if alias in seen:
            raise RequestError("INVALID_ARGUMENT", f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen or signature.outputs))


def _joined(names: Any) -> str:
    return ",".join(sorted(names))


def _braced(names: Any) -> str:
    return "{" + _joined(names) + "}"
