"""tf.distribute strategies from the settings."""

from __future__ import annotations

import functools

import tensorflow as tf

from tfrec.config import Train
from tfrec.errors import ConfigError


def make_strategy(settings: Train) -> tf.distribute.Strategy:
    """The strategy of the settings.

    Raises:
        ConfigError: there are fewer devices than asked for, or the batch cannot be divided among them.
    """
    if settings.strategy == "none":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    wanted = settings.devices or len(devices)
    if wanted > len(devices):
        raise ConfigError(f"train.devices must be at most the number of logical {kind}s, {len(devices)}", wanted)
    if settings.batch % (wanted * settings.accumulate):
        raise ConfigError(
            f"train.batch must be a multiple of devices × train.accumulate, {wanted} × {settings.accumulate}",
            settings.batch,
        )
    return _mirrored(tuple(devices[:wanted]))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # Every strategy numbers its collectives from the same start: a second one over these devices would collide.
    return tf.distribute.MirroredStrategy(devices)
