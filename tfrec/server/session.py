"""A SavedModel in TensorFlow's C++ session: loaded as TensorFlow Serving's loader does, run in the caller's thread.

TensorFlow's Python loader builds a Python object per operation and infers the shapes of every function while it holds
the interpreter lock; for a BERT this stops every other request for 150-240 ms. Here the C API gets the graph directly
from graph_io, in bites of a millisecond, and shapes are inferred by the session, which holds no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import CallableOptions, ConfigProto, RunOptions
from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef, MetaGraphDef
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.client import pywrap_tf_session as c_api

from tfrec.server.background import native
from tfrec.server.graph_io import import_graph
from tfrec.server.status import RequestError, from_runtime

_IN_CALLERS_THREAD = -1
_INIT = "__saved_model_init_op"


@dataclass(frozen=True)
class Threads:
    """Threads of a session; 0 lets TensorFlow choose.

    Args:
        intra: inside an operation.
        inter: for operations side by side; 0 runs them one after the other in the caller's thread, which is four times
            as fast for a small graph.
    """

    intra: int = 0
    inter: int = 0


class GraphSession:
    """The graph of a SavedModel, with restored variables and filled tables.

    Args:
        path: the folder that holds saved_model.pb.
        meta_graph, graph: what read_meta_graph found there.

    Raises:
        RequestError: the graph cannot be loaded, in the words of the C++ loader.
    """

    def __init__(self, path: Path, meta_graph: MetaGraphDef, graph: Sequence[bytes], threads: Threads | None = None):
        threads = threads or Threads()
        self._options = RunOptions(inter_op_thread_pool=0 if threads.inter else _IN_CALLERS_THREAD)
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()
        try:
            # Freed with the session, without the interpreter lock, as the Python object is gone by then.
            with tf.Graph()._c_graph.get() as c_graph:
                import_graph(c_graph, graph)
                self._session = _new_session(c_graph, threads)
        except tf.errors.OpError as error:
            raise from_runtime(error) from error
        try:
            self._initialise(path, meta_graph)
        except BaseException:
            self.close()
            raise

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], deadline: float | None = None
    ) -> list[np.ndarray]:
        """Runs the graph; safe to call from several threads.

        Args:
            feeds: arrays by tensor name; strings are object arrays of bytes.
            fetches: names of tensors.
            deadline: on the monotonic clock; a call that starts later is refused.

        Raises:
            RequestError: the deadline has passed, or the graph refuses its inputs.
        """
        if deadline is not None and deadline <= time.monotonic():
            raise RequestError("DEADLINE_EXCEEDED", "Timed out waiting for notification")
        key = (tuple(feeds), tuple(fetches))
        try:
            handle = self._callables.get(key)
            if handle is None:
                handle = self._make_callable(key)
            return [value if isinstance(value, np.ndarray) else _scalar(value) for value in self._call(handle, feeds)]
        except tf.errors.OpError as error:
            raise from_runtime(error) from error

    def close(self) -> None:
        """Frees the graph and its variables; run must not be called afterwards."""
        native(c_api.TF_CloseSession, self._session)
        native(c_api.TF_DeleteSession, self._session)
        self._callables.clear()

    def _call(self, handle: Any, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        return native(c_api.TF_SessionRunCallable, self._session, handle, tuple(feeds.values()), None)

    def _make_callable(self, key: tuple[tuple[str, ...], tuple[str, ...]]) -> Any:
        with self._lock:
            if key not in self._callables:
                self._callables[key] = self._callable(CallableOptions(feed=key[0], fetch=key[1]))
            return self._callables[key]

    def _callable(self, options: CallableOptions) -> Any:
        options.run_options.CopyFrom(self._options)
        buffer = c_api.TF_NewBufferFromString(options.SerializeToString())
        try:
            return native(c_api.TF_SessionMakeCallable, self._session, buffer)
        finally:
            c_api.TF_DeleteBuffer(buffer)

    def _initialise(self, path: Path, meta_graph: MetaGraphDef) -> None:
        saver, feeds = meta_graph.saver_def, _asset_feeds(path, meta_graph)
        variables = path / "variables" / "variables"
        try:
            native(c_api.ExtendSession, self._session)
            if saver.restore_op_name and variables.with_suffix(".index").exists():
                self._target(saver.restore_op_name, {saver.filename_tensor_name: _text(variables), **feeds})
            if init := _init_op(meta_graph):
                self._target(init, feeds)
        except tf.errors.OpError as error:
            raise from_runtime(error) from error

    def _target(self, operation: str, feeds: Mapping[str, np.ndarray]) -> None:
        handle = self._callable(CallableOptions(feed=list(feeds), target=[operation]))
        self._call(handle, feeds)
        c_api.TF_SessionReleaseCallable(self._session, handle)


def _new_session(graph: Any, threads: Threads) -> Any:
    config = ConfigProto(intra_op_parallelism_threads=threads.intra, inter_op_parallelism_threads=threads.inter)
    # As TensorFlow Serving: no copies of a graph that nobody extends or asks for.
    config.experimental.optimize_for_static_graph = config.experimental.disable_output_partition_graphs = True
    # Each signature is optimised apart, of the whole graph. One round gives what two give, and the MLIR pass through
    # every function changes nothing that runs: without them a BERT loads at 6 of 10 of the CPU-seconds.
    config.graph_options.rewrite_options.meta_optimizer_iterations = RewriterConfig.ONE
    config.graph_options.rewrite_options.disable_tfg_optimizer = True
    options = c_api.TF_NewSessionOptions(target="", config=config)
    try:
        return c_api.TF_NewSessionRef(graph, options)
    finally:
        c_api.TF_DeleteSessionOptions(options)


def _asset_feeds(path: Path, meta_graph: MetaGraphDef) -> dict[str, np.ndarray]:
    files = list(meta_graph.asset_file_def)
    for packed in [] if files else meta_graph.collection_def["saved_model_assets"].any_list.value:
        files.append(AssetFileDef.FromString(packed.value))
    return {file.tensor_info.name: _text(path / "assets" / file.filename) for file in files}


def _init_op(meta_graph: MetaGraphDef) -> str:
    if _INIT in meta_graph.signature_def:
        return meta_graph.signature_def[_INIT].outputs[_INIT].name.split(":")[0]
    for collection in ("saved_model_main_op", "legacy_init_op"):
        names = meta_graph.collection_def[collection].node_list.value
        if names:
            return names[0]
    return ""


def _scalar(value: Any) -> np.ndarray:
    return np.array(value, object if isinstance(value, bytes) else None)


def _text(path: Path) -> np.ndarray:
    return np.array(str(path).encode(), object)
