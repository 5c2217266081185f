"""Item ids → indices by a table that is filled from a variable, so that an artefact can learn new ids."""

from __future__ import annotations

import uuid

import tensorflow as tf


class ItemTable(tf.saved_model.experimental.TrackableResource):
    """A hash table of the ids in a variable, filled when the artefact is loaded.

    Its ids are no constants of the graph: whoever loads the variable with more ids gets a table of more ids.

    Args:
        ids: string [N+1]; the id at place i ≥ 1 has index i, place 0 is "".
    """

    def __init__(self, ids: tf.Variable):
        super().__init__()
        self._ids = ids
        self._shared_name = f"items_{uuid.uuid4()}"  # tables of equal names are one table
        self._initialize()

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        """Indices int32 of ids of any shape; 0 = unknown."""
        return tf.raw_ops.LookupTableFindV2(
            table_handle=self.resource_handle, keys=ids, default_value=tf.constant(0, tf.int32)
        )

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int32, shared_name=self._shared_name)

    def _initialize(self) -> None:
        ids = self._ids.read_value()[1:]
        tf.raw_ops.LookupTableImportV2(
            table_handle=self.resource_handle, keys=ids, values=tf.range(1, tf.size(ids) + 1)
        )
