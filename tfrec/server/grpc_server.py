"""TensorFlow Serving's gRPC and REST API over SavedModels: the command tfrec-model-server."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfrec.errors import ServerError
from tfrec.server.api import Api
from tfrec.server.batching import Batching, BatchingSession, BatchScheduler
from tfrec.server.config import read_config, single_model
from tfrec.server.flags import parser
from tfrec.server.http_server import HttpServer
from tfrec.server.manager import Every, FixedModel, Loading, Manager
from tfrec.server.metrics import Metrics
from tfrec.server.protos import BatchingParameters, MonitoringConfig, read_text
from tfrec.server.rest import PROMETHEUS_PATH, Rest
from tfrec.server.servable import Servable
from tfrec.server.services import handlers
from tfrec.server.session import Threads
from tfrec.server.status import RequestError, invalid
from tfrec.server.stop import Stop
from tfrec.server.tls import read_credentials
from tfrec.server.warmup import warm_up

_LOG = logging.getLogger(__name__)
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
_WAITING = 1000  # requests that may wait for a thread; more are refused with RESOURCE_EXHAUSTED
_GRACE = 30.0  # seconds for the requests that are under way when the server is told to stop

Model = FixedModel  # what callers of start hand over when they have loaded a model themselves


def start(
    manager: Manager,
    host: str,
    port: int,
    threads: int,
    *,
    api: Api | None = None,
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, int | str]] = (),
    socket_path: str = "",
    health_check: bool = False,
) -> tuple[grpc.Server, int]:
    """Starts serving gRPC in the background.

    Args:
        port: 0 = any free port.
        threads: requests at a time.
        api: its own calls and metrics when absent.
        credentials: for TLS.
        options: channel arguments.
        socket_path: a UNIX socket to listen on as well.
        health_check: whether grpc.health.v1 is answered.

    Returns:
        the server and the port it listens on.

    Raises:
        ServerError: the address cannot be bound.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
    server = grpc.server(pool, options=[*_UNLIMITED, *options], maximum_concurrent_rpcs=threads + _WAITING)
    api = api or Api(manager)
    server.add_generic_rpc_handlers(handlers(api))
    if health_check:
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        bound = _bind(server, f"{host}:{port}", credentials)
        if socket_path:
            _bind(server, f"unix:{socket_path}", credentials)
    except RuntimeError as error:
        raise ServerError("the address must be free and local", f"{host}:{port}", "Choose another --port") from error
    server.start()
    return server, bound


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT and lets requests end; a second signal ends at once. Returns the exit code."""
    arguments = parser(str(__doc__)).parse_args(argv)
    if arguments.version:
        print(f"tfrec-model-server {importlib.metadata.version('tfrec')}\nTensorFlow Library: {tf.__version__}")
        return 0
    logging.basicConfig(stream=sys.stderr, format="%(levelname).1s %(message)s", level=logging.WARNING)
    stop = Stop()
    try:
        with ExitStack() as stack:
            _serve(arguments, stop, stack)
    except RequestError as error:
        print(f"error: Failed to start server. Error: {error.status()}", file=sys.stderr)
        return error.exit_code
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(arguments: argparse.Namespace, stop: Stop, stack: ExitStack) -> None:
    """Starts everything, waits, and lets the stack end it in the opposite order."""
    config, metrics = _model_config(arguments), Metrics()
    manager = Manager(_loading(arguments, metrics, stack))
    stack.callback(manager.close)
    if arguments.file_system_poll_wait_seconds > 0:
        stack.callback(Every(arguments.file_system_poll_wait_seconds, manager.poll, "poll").stop)
    manager.reload(config, lambda: not stop.is_set())
    _poll_config(arguments, manager, stack)
    if stop.is_set():
        return
    api = Api(manager, metrics, arguments.enable_serialization_as_tensor_content)
    rest = _start_rest(arguments, api, stack)
    server, port = start(
        manager,
        arguments.host,
        arguments.port,
        arguments.grpc_max_threads,
        api=api,
        credentials=read_credentials(Path(arguments.ssl_config_file)) if arguments.ssl_config_file else None,
        options=channel_arguments(arguments.grpc_channel_arguments),
        socket_path=arguments.grpc_socket_path,
        health_check=arguments.enable_grpc_healthcheck_service,
    )
    stack.callback(lambda: server.stop(_GRACE).wait())
    for model in config.model_config_list.config:
        versions = [str(v.number) for v in manager.states(model.name) if v.servable is not None]
        _say(f"serving {model.name} version {', '.join(versions)} on {arguments.host}:{port}")
    if rest is not None:
        _say(f"REST on {arguments.host}:{rest.port}")
    gc.collect()
    gc.freeze()  # a full collection of what TensorFlow's modules made stops every thread for a fifth of a second
    stop.wait()


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Reads ``--grpc_channel_arguments``.

    Raises:
        ServerError: a part is no key=value pair.
    """
    pairs: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ServerError("--grpc_channel_arguments must be comma separated key=value pairs", text)
        pairs.append((key, int(value) if value.lstrip("-").isdecimal() else value))
    return pairs


def _bind(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)


def _model_config(arguments: argparse.Namespace) -> ModelServerConfig:
    if arguments.model_config_file:
        return read_config(Path(arguments.model_config_file))
    if not arguments.model_base_path:
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    if not Path(arguments.model_base_path).is_dir():
        raise ServerError("model_base_path must be a folder", arguments.model_base_path)
    return single_model(arguments.model_name, arguments.model_base_path)


def _loading(arguments: argparse.Namespace, metrics: Metrics, stack: ExitStack) -> Loading:
    scheduler = _scheduler(arguments, stack)
    wrap = None if scheduler is None else lambda session, signatures: BatchingSession(session, scheduler, signatures)
    tags, check_methods = arguments.saved_model_tags.split(","), arguments.enable_signature_method_name_check
    threads = _threads(arguments)
    iterations = max(arguments.num_request_iterations_for_warmup, 1) if arguments.enable_model_warmup else 0
    return Loading(
        load=lambda path: _load(lambda: Servable(path, threads, wrap, tags, check_methods), iterations, metrics),
        threads=max(arguments.num_load_threads, 1),
        retries=arguments.max_num_load_retries,
        retry_seconds=arguments.load_retry_interval_micros / 1e6,
        early_labels=arguments.allow_version_labels_for_unavailable_models,
    )


def _threads(arguments: argparse.Namespace) -> Threads:
    intra, inter = arguments.tensorflow_intra_op_parallelism, arguments.tensorflow_inter_op_parallelism
    both = arguments.tensorflow_session_parallelism
    if intra and inter and both:
        raise invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    return Threads(intra, inter) if intra or inter else Threads(both, both)


def _load(make: Callable[[], Servable], iterations: int, metrics: Metrics) -> Servable:
    started = time.perf_counter()
    servable = make()
    path = str(servable.path)
    metrics.load_latency.add(path, by=int((time.perf_counter() - started) * 1e6))
    metrics.loads.add(path, "success")
    started = time.perf_counter()
    try:
        if iterations and warm_up(servable, iterations):
            metrics.warmup.add((time.perf_counter() - started) * 1e6, path, "OK")
    except BaseException:
        servable.close()
        raise
    return servable


def _scheduler(arguments: argparse.Namespace, stack: ExitStack) -> BatchScheduler | None:
    if not arguments.enable_batching:
        if arguments.batching_parameters_file:
            raise invalid(
                "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
            )
        return None
    proto = BatchingParameters()
    if arguments.batching_parameters_file:
        read_text(Path(arguments.batching_parameters_file), proto)
    scheduler = BatchScheduler(Batching.from_proto(proto))
    stack.callback(scheduler.close)
    return scheduler


def _poll_config(arguments: argparse.Namespace, manager: Manager, stack: ExitStack) -> None:
    if arguments.model_config_file and arguments.model_config_file_poll_wait_seconds > 0:
        file = Path(arguments.model_config_file)
        seconds = arguments.model_config_file_poll_wait_seconds
        stack.callback(Every(seconds, lambda: _reload(manager, file), "config").stop)


def _reload(manager: Manager, file: Path) -> None:
    try:
        manager.reload(read_config(file))
    except RequestError as error:
        _LOG.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)


def _start_rest(arguments: argparse.Namespace, api: Api, stack: ExitStack) -> HttpServer | None:
    if not arguments.rest_api_port:
        return None
    if arguments.rest_api_port == arguments.port:
        raise ServerError("--rest_api_port must differ from --port", arguments.port)
    monitoring = MonitoringConfig()
    if arguments.monitoring_config_file:
        read_text(Path(arguments.monitoring_config_file), monitoring)
    prometheus = monitoring.prometheus_config
    path = (prometheus.path or PROMETHEUS_PATH) if prometheus.enable else ""
    rest = Rest(api, path, arguments.rest_api_timeout_in_ms / 1e3, arguments.rest_api_enable_cors_support)
    server = HttpServer(rest, arguments.host, max(arguments.rest_api_port, 0), arguments.rest_api_num_threads)
    stack.callback(server.close, _GRACE)
    return server


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
