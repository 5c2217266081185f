"""Which processes train together, from the environment, and their life before and after the training."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import tensorflow as tf

from tfrec.config import Config
from tfrec.errors import ConfigError, RestartError
from tfrec.training.peers import Peers, meet
from tfrec.training.strategies import make_strategy

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
_JOBS = {"multi_worker": ("chief", "worker"), "parameter_server": ("chief", "worker", "ps")}
_PACKAGES = ("tfrec", "tensorflow", "keras")


class Task(NamedTuple):
    """This process in its cluster.

    Args:
        names: of all processes, the one that leads first.
        place: of this one among them.
        address: host:port of the one that leads.
    """

    names: tuple[str, ...]
    place: int
    address: str


def read_task(strategy: str) -> Task:
    """The cluster of TF_CONFIG, or of Slurm, which then sets TF_CONFIG for TensorFlow.

    Raises:
        ConfigError: there is none, or not one of this strategy.
    """
    if "TF_CONFIG" not in os.environ and "SLURM_PROCID" in os.environ:
        os.environ["TF_CONFIG"] = json.dumps(_slurm())
    text = os.environ.get("TF_CONFIG", "")
    try:
        tree = json.loads(text)
        jobs = {job: tree["cluster"][job] for job in _JOBS[strategy] if tree["cluster"].get(job)}
        foreign = sorted(set(tree["cluster"]) - set(_JOBS[strategy]))
        names = [f"{job} {i}" for job, addresses in jobs.items() for i in range(len(addresses))]
        addresses = [str(address) for of_job in jobs.values() for address in of_job]
        index = names.index(f"{tree['task']['type']} {int(tree['task']['index'])}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(strategy, text) from error
    if foreign or not all(address.rpartition(":")[2].isdecimal() for address in addresses):
        raise _bad(strategy, text)
    return Task(tuple(names), index, addresses[0])


def _bad(strategy: str, text: str) -> ConfigError:
    jobs = " and ".join(_JOBS[strategy])
    rule = f"train.strategy {strategy} needs TF_CONFIG with a task of its cluster, whose jobs may be {jobs}"
    return ConfigError(rule, text, f"For example {_EXAMPLE}")


def _slurm() -> dict[str, Any]:
    # Without GPUs TensorFlow divides a node's none of them among its tasks, and fails.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    none = {"gpus_per_node": tasks, "gpus_per_task": 1, "auto_set_gpu": False}
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**({} if shutil.which("nvidia-smi") else none))
        cluster = resolver.cluster_spec().as_dict()
        job, index = resolver.get_task_info()
    except (RuntimeError, ValueError) as error:
        raise ConfigError("a cluster of Slurm must be described by its variables", str(error)) from error
    return {"cluster": cluster, "task": {"type": job, "index": index}}


@contextmanager
def joined(config: Config) -> Iterator[Peers]:
    """The processes that train together; on leaving, all have come to the end.

    Raises:
        ConfigError: the environment names no cluster, or the settings or versions of its processes differ.
        TrainingError: a process did not come.
        RestartError: one is gone.
    """
    settings = config.train
    if settings.strategy not in _JOBS:
        yield Peers()
        return
    if settings.strategy == "parameter_server":
        _check_threads()
    task = read_task(settings.strategy)
    peers = meet(*task, settings.peer_seconds)
    try:
        peers.agree("all processes of a training must have the same settings and versions", _described(config))
        # TensorFlow forms a cluster before its first operation or never.
        with _given_up_after(settings.peer_seconds):
            if settings.strategy == "parameter_server" and not peers.leads:
                server = _serve()  # until this process ends
                peers.trains = server is None
            else:
                make_strategy(settings)
        yield peers
        peers.wait()
    finally:
        peers.close()


def _check_threads() -> None:
    name = "TF_NUM_INTEROP_THREADS"
    if os.environ.get(name) == "1":
        raise ConfigError(f"parameter servers need {name} above 1: they wait for one another", 1, "Unset it")


def _serve() -> tf.distribute.Server:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return tf.distribute.Server(
        resolver.cluster_spec(), resolver.task_type, resolver.task_id, protocol=resolver.rpc_layer or "grpc"
    )


def _described(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, below in value.items():
                walk(f"{place}.{key}" if place else key, below)
        else:
            flat[place] = value

    walk("", config.model_dump(mode="json"))
    return flat | {f"version of {package}": version(package) for package in _PACKAGES}


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Ends this process if the body takes longer: TensorFlow waits forever for one that died on its way."""

    def give_up() -> None:
        print(f"tfrec: the cluster did not form within train.peer_seconds, {seconds:g}", file=sys.stderr, flush=True)
        os._exit(RestartError.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
