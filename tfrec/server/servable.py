"""One version of one SavedModel, run as TensorFlow Serving runs it: a graph session with the tag "serve"."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from tfrec.server.graph_io import read_meta_graph
from tfrec.server.session import GraphSession, Threads
from tfrec.server.status import RequestError, invalid
from tfrec.server.tensors import dtype_name, dtype_of, to_array
from tfrec.server.text_ops import text_op_libraries

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS, PREDICT = (f"tensorflow/serving/{kind}" for kind in ("classify", "regress", "predict"))


class Session(Protocol):
    """What runs tensors by name: a GraphSession, or batches in front of one."""

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], deadline: float | None = None
    ) -> list[np.ndarray]: ...

    def close(self) -> None: ...


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

    @functools.cached_property
    def feeds(self) -> tuple[tuple[str, str, np.dtype], ...]:
        """Name, tensor and numpy's type of every input."""
        return tuple((alias, i.tensor, np.dtype(i.dtype.as_numpy_dtype)) for alias, i in self.inputs.items())

    @functools.cached_property
    def fetches(self) -> tuple[str, ...]:
        """The tensors of all outputs."""
        return tuple(info.tensor for info in self.outputs.values())


class Servable:
    """A loaded SavedModel.

    Args:
        path: the folder that holds saved_model.pb.
        threads: of its session.
        wrap: puts something in front of the session, as batching.
        tags: of the MetaGraphDef.
        check_methods: whether a signature answers only the calls that its method_name says; TensorFlow 2 names them all
            predict.

    Raises:
        RequestError: the folder is no SavedModel that this runtime can load.
    """

    def __init__(
        self,
        path: str | Path,
        threads: Threads | None = None,
        wrap: Callable[[GraphSession, Iterable[Signature]], Session] | None = None,
        tags: Sequence[str] = ("serve",),
        check_methods: bool = False,
    ):
        self.path, self.check_methods = Path(path), check_methods
        load_text_ops()
        meta_graph, graph = read_meta_graph(self.path, tags)
        self.signatures: Mapping[str, Signature] = read_signatures(meta_graph)
        self.signature_defs = SignatureDefMap(signature_def=meta_graph.signature_def)
        session = GraphSession(self.path, meta_graph, graph, threads)
        self.session: Session = wrap(session, self.signatures.values()) if wrap else session

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
        decode: Callable[[str, Any], np.ndarray] = lambda alias, value: np.asarray(value),
    ) -> dict[str, np.ndarray]:
        """Runs one signature; safe to call from several threads.

        Args:
            signature: its name; "" means serving_default.
            inputs: an array per input; those with a default may be left out. Strings are object arrays of bytes.
            outputs: the outputs wanted; None or empty means all.
            deadline: on the monotonic clock; None waits as long as it takes.
            decode: makes an array of an input's name and value, once the names are known to fit.

        Returns:
            an array per output.

        Raises:
            RequestError: the request does not fit the signature, or the graph refuses it.
        """
        found = self._signature(signature or DEFAULT_SIGNATURE)
        _check_names(found, inputs)
        feeds = {
            tensor: decode(alias, inputs[alias]) if alias in inputs else found.defaults[alias]
            for alias, tensor, _ in found.feeds
        }
        wanted, fetches = _wanted(found, outputs) if outputs else (found.outputs, found.fetches)
        for _, tensor, dtype in found.feeds:
            if feeds[tensor].dtype is not dtype:
                _check_dtypes(found, feeds)
        return dict(zip(wanted, self.session.run(feeds, fetches, deadline), strict=True))

    def close(self) -> None:
        """Frees the session; run must not be called afterwards."""
        self.session.close()

    def _signature(self, name: str) -> Signature:
        if name not in self.signatures:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        found = self.signatures[name]
        if self.check_methods and found.method not in (PREDICT, CLASSIFY, REGRESS):
            raise RequestError(
                "INTERNAL",
                f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
                f"Was: {found.method}",
            )
        return found


def complete_inputs(signature: Signature, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Puts inputs in the signature's order and fills those left out from its defaults.

    Raises:
        RequestError: an input is missing or unknown.
    """
    _check_names(signature, inputs)
    return {alias: inputs[alias] if alias in inputs else signature.defaults[alias] for alias in signature.inputs}


def _check_names(signature: Signature, inputs: Mapping[str, Any]) -> None:
    if len(inputs) == len(signature.inputs) and all(map(inputs.__contains__, signature.inputs)):
        return
    extra, missing = inputs.keys() - signature.inputs.keys(), signature.inputs.keys() - inputs.keys()
    wrong_size = len(inputs) > len(signature.inputs) or (len(inputs) < len(signature.inputs) and not signature.defaults)
    if wrong_size:
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
            f"len({_braced(inputs)}) != len({_braced(signature.inputs)}). "
            f"Sent extra: {_braced(extra)}. Missing but required: {_braced(missing)}.",
        )
    for alias in sorted(missing - signature.defaults.keys()):
        raise invalid(
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias].tensor}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {_braced(inputs)}, or default input alias "
            f"set: {_joined(signature.defaults)}",
        )
    if extra:
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {_joined(inputs.keys() - extra)}, "
            f"request input: {_joined(inputs)}",
        )


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
    expected = {info.tensor: info.dtype for info in signature.inputs.values()}
    for i, tensor in enumerate(sorted(feeds)):  # the session counts its arguments in this order
        got = dtype_of(feeds[tensor])
        if got != expected[tensor]:
            raise invalid(f"Expects arg[{i}] to be {dtype_name(expected[tensor])} but {dtype_name(got)} is provided")


def _wanted(signature: Signature, outputs: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The outputs that are asked for and their tensors."""
    for alias in outputs:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(signature.outputs)}.",
            )
        if list(outputs).count(alias) > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
    wanted = sorted(outputs)
    return wanted, tuple(signature.outputs[alias].tensor for alias in wanted)


def _joined(names: Any) -> str:
    return ",".join(sorted(names))


def _braced(names: Any) -> str:
    return "{" + _joined(names) + "}"
