"""tf.distribute strategies from the settings."""

from __future__ import annotations

import functools

import tensorflow as tf

from tfrec.config import Train
from tfrec.errors import ConfigError


def make_strategy(settings: Train) -> tf.distribute.Strategy:
    """The strategy of the settings; equal settings share one.

    Raises:
        ConfigError: there are fewer devices than asked for, or the batch cannot be divided among them.
    """
    if settings.strategy == "none":
        return tf.distribute.get_strategy()
    if settings.strategy == "mirrored":
        devices = _devices(settings.devices)
        _check_batch(settings, len(devices))
        return _mirrored(devices)
    if settings.strategy == "parameter_server":
        return _parameter_server()
    strategy = _multi_worker() if settings.strategy == "multi_worker" else _tpu(settings.tpu)
    _check_batch(settings, strategy.num_replicas_in_sync)
    return strategy


def _check_batch(settings: Train, replicas: int) -> None:
    if settings.batch % (replicas * settings.accumulate):
        raise ConfigError(
            f"train.batch must be a multiple of replicas × train.accumulate, {replicas} × {settings.accumulate}",
            settings.batch,
        )


def _devices(wanted: int) -> tuple[str, ...]:
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if wanted > len(devices):
        raise ConfigError(f"train.devices must be at most the number of logical {kind}s, {len(devices)}", wanted)
    return tuple(devices[: wanted or len(devices)])


# Every strategy numbers its collectives from the same start: a second one over these devices would collide.
@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


@functools.cache
def _parameter_server() -> tf.distribute.Strategy:
    return tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())


@functools.cache
def _tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name or None)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ConfigError(
            "train.strategy tpu needs a TPU that train.tpu or TPU_NAME leads to", f"{name!r}: {error}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)
