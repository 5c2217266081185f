"""The command line of tensorflow_model_server, as far as a CPU server has use for it."""

from __future__ import annotations

import argparse
import os

# Flags of tensorflow_model_server about GPUs, TFLite, profiling and memory that this server has no use for: a command
# line that works there starts this one too.
WITHOUT_EFFECT = (
    *("enable_profiler", "enforce_session_run_timeout", "flush_filesystem_caches", "num_tflite_interpreters_per_pool"),
    *("num_tflite_pools", "num_unload_threads", "per_process_gpu_memory_fraction"),
    *("remove_unused_fields_from_bundle_metagraph", "skip_initialize_tpu", "xla_cpu_compilation_enabled"),
)
EXAMPLE = "example: tfrec-model-server --port 8500 --model_name shop --model_base_path exports/shop"


def parser(description: str) -> argparse.ArgumentParser:
    """Flags as ``--name value``, ``--name=value`` and, for switches, also ``--name`` alone."""
    made = argparse.ArgumentParser("tfrec-model-server", description=description, epilog=EXAMPLE, allow_abbrev=False)
    _addresses(made)
    _models(made)
    _execution(made)
    for name in WITHOUT_EFFECT:
        made.add_argument(f"--{name}", nargs="?", const="true", help="taken, without effect here")
    return made


def _addresses(made: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    made.add_argument("--port", type=int, default=8500, help="gRPC port; 0 = any free port")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = every interface")
    made.add_argument("--grpc_socket_path", default="", help="UNIX socket to listen on as well")
    made.add_argument("--rest_api_port", type=int, default=0, help="HTTP port; 0 = none, -1 = any free port")
    made.add_argument("--rest_api_num_threads", type=int, default=4 * cores, help="REST requests at a time")
    made.add_argument("--rest_api_timeout_in_ms", type=int, default=30000, help="time for a REST request")
    _switch(made, "rest_api_enable_cors_support", False, "browsers may ask from pages of other origins")
    made.add_argument("--grpc_max_threads", type=int, default=4 * cores, help="gRPC requests at a time")
    made.add_argument("--grpc_channel_arguments", default="", help="comma separated key=value pairs")
    made.add_argument("--ssl_config_file", default="", help="text SSLConfig: TLS for gRPC")
    made.add_argument("--monitoring_config_file", default="", help="text MonitoringConfig: the Prometheus page")
    _switch(made, "enable_grpc_healthcheck_service", False, "answer grpc.health.v1")
    made.add_argument("--version", action="store_true", help="print the version and end")


def _models(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model_name", default="default", help="name that requests use")
    made.add_argument("--model_base_path", default="", help="folder of numbered version folders")
    made.add_argument("--model_config_file", default="", help="text ModelServerConfig; instead of the two above")
    made.add_argument(
        "--model_config_file_poll_wait_seconds", type=int, default=0, help="how often to read it again; 0 = never"
    )
    made.add_argument(
        "--file_system_poll_wait_seconds", type=float, default=1, help="how often to look for versions; 0 = once"
    )
    _switch(made, "allow_version_labels_for_unavailable_models", False, "labels may name versions still to come")
    made.add_argument("--max_num_load_retries", type=int, default=5, help="attempts after a failed load")
    made.add_argument("--load_retry_interval_micros", type=int, default=60_000_000, help="pause between attempts")
    made.add_argument("--saved_model_tags", default="serve", help="comma separated, of the graph to load")
    made.add_argument("--num_load_threads", type=int, default=0, help="versions loaded at a time; 0 = one")
    _switch(made, "enable_model_warmup", True, "run the warm-up requests of a version before it serves")
    made.add_argument("--num_request_iterations_for_warmup", type=int, default=0, help="how often each; 0 = once")


def _execution(made: argparse.ArgumentParser) -> None:
    _switch(made, "enable_signature_method_name_check", False, "signatures answer only the calls of their method_name")
    _switch(made, "enable_serialization_as_tensor_content", False, "answer Predict with tensor_content")
    _switch(made, "enable_batching", False, "join requests into batches")
    made.add_argument("--batching_parameters_file", default="", help="text BatchingParameters")
    made.add_argument("--tensorflow_intra_op_parallelism", type=int, default=0, help="threads inside an operation")
    made.add_argument(
        "--tensorflow_inter_op_parallelism",
        type=int,
        default=0,
        help="threads for operations side by side; 0 = one after the other in the request's thread",
    )
    made.add_argument("--tensorflow_session_parallelism", type=int, default=0, help="both of the two above")


def _switch(made: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    made.add_argument(f"--{name}", type=_truth, nargs="?", const=True, default=default, help=text)


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "t", "yes", "y"):
        return True
    if text.lower() in ("false", "0", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"a switch must be true or false; got {text!r}")
