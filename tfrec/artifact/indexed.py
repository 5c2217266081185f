"""What stands in for a matrix product with the whole catalogue where that would be too slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact.buckets import Buckets
from tfrec.artifact.ivf import IVF, Allowed, Found
from tfrec.artifact.scan import Scan
from tfrec.artifact.stored import LOWEST, Storage

PROBING = "_nprobe"  # ends the names of signatures that are told how many buckets to look into


@dataclass(frozen=True)
class Plan:
    """How the nearest of a catalogue's vectors are found.

    Args:
        buckets: of an inverted file; None = an exact scan.
        nprobe, storage, reach: see :class:`tfrec.artifact.ivf.IVF`.
    """

    buckets: Buckets | None = None
    nprobe: int = 1
    storage: Storage = "packed"
    reach: np.ndarray | None = None

    @property
    def approximate(self) -> bool:
        return self.buckets is not None


def make_index(plan: Plan | None, vectors: tf.Variable | None, available: tf.Variable) -> IVF | Scan | None:
    """The index of a plan, None without one."""
    if plan is None or vectors is None:
        return None
    if plan.buckets is None:
        return Scan(vectors, available)
    return IVF(vectors, plan.buckets, plan.storage, plan.reach, plan.nprobe)


def signatures(
    name: str, function: Callable[..., Any], specs: Mapping[str, tf.TensorSpec], index: IVF | Scan | None
) -> dict[str, Any]:
    """``name`` and, where an inverted file is asked, ``name_nprobe`` with the further input ``nprobe``, as k.

    A server that reads JSON or batches wants all inputs of a signature, defaults or not: what is asked plainly must
    find a plain signature.

    Args:
        function: of tensors by name, and of ``nprobe``, which may be None.
        specs: of the tensors.
        index: that is asked.
    """
    graph = tf.function(function)
    made = {name: graph.get_concrete_function(**specs)}
    if isinstance(index, IVF):
        made[name + PROBING] = graph.get_concrete_function(**specs, nprobe=tf.TensorSpec(None, tf.int32, name="nprobe"))
    return made


def search(
    index: IVF | Scan,
    query: tf.Tensor,
    dropped: tf.Tensor,
    count: tf.Tensor,
    nprobe: tf.Tensor | None,
    allowed: Allowed | None = None,
) -> Found:
    """Asks an index; see :meth:`IVF.search`. Of rows that differ in ``nprobe`` all get the most; None = as planned."""
    if isinstance(index, Scan):
        return index.search(query, dropped, count, allowed)
    if nprobe is None:
        return index.search(query, dropped, count, tf.constant(index.nprobe), allowed)
    with tf.control_dependencies([tf.debugging.assert_positive(nprobe, message="nprobe must be at least 1")]):
        most = tf.maximum(tf.reduce_max(nprobe), 1)
    return index.search(query, dropped, count, most, allowed)


def or_else(known: tf.Tensor, found: Found, others: Callable[[], Found], count: tf.Tensor) -> Found:
    """What was found for rows that are ``known`` [B], and the others' [B, count]; computed only if there are any."""
    found = _wide(found, count)

    def mixed() -> Sequence[tf.Tensor]:
        return [tf.where(known[:, None], *pair) for pair in zip(found, _wide(others(), count), strict=True)]

    scores, items = tf.cond(tf.reduce_all(known), lambda: list(found), mixed)
    return scores, items


def _wide(found: Found, count: tf.Tensor) -> Found:
    missing = [[0, 0], [0, count - tf.shape(found[0])[1]]]
    return tf.pad(found[0], missing, constant_values=LOWEST), tf.pad(found[1], missing)
