"""Batches made by a tf.data service, away from the machine that trains."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrec.data.batches import HistoryBatches
from tfrec.errors import TrainingError

_CONNECT_SECONDS = 5


@dataclass(frozen=True)
class ServedBatches:
    """Batches in the order in which they would be made here, from a service with one worker.

    The histories travel with each epoch's graph, whose limit is 2 GiB.

    Args:
        batches: what the service makes.
        address: of the dispatcher, grpc://host:port.

    Raises:
        TrainingError: nothing listens there.
    """

    batches: HistoryBatches
    address: str

    def __post_init__(self) -> None:
        host, _, port = self.address.removeprefix("grpc://").rpartition(":")
        try:
            # A dataset would wait for an absent service in silence.
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            advice = "Start a dispatcher and a worker of tf.data.experimental.service, or unset train.data_service"
            raise TrainingError("train.data_service must be reachable", f"{self.address}: {error}", advice) from error

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.batches.steps

    def target_counts(self, items: int) -> np.ndarray:
        """Events of each item, int64 [N + 1]."""
        return self.batches.target_counts(items)

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """The batches of :meth:`HistoryBatches.dataset`."""
        # One request at a time: answers to several come in any order.
        whole = tf.data.experimental.service.ShardingPolicy.OFF
        served = tf.data.experimental.service.distribute(whole, self.address, max_outstanding_requests=1)
        made = self.batches.dataset(epoch, first_step).apply(served)
        return made.apply(tf.data.experimental.assert_cardinality(self.steps - first_step)).prefetch(tf.data.AUTOTUNE)
