"""The two-tower model with the item and user tables that its towers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.config import Model as Settings
from tfrec.models.towers import ItemTower, UserTower
from tfrec.schema import Schema, Side


@keras.saving.register_keras_serializable("tfrec")
class Table(keras.layers.Layer):
    """Rows of per-item or per-user tensors, looked up by index; not trained.

    Args:
        columns: name -> (shape of the whole column, dtype); row 0 stands for the unknown.

    Call: int32 indices [...] -> {name: [..., *column shape without rows]}.
    """

    def __init__(self, columns: Mapping[str, tuple[tuple[int, ...], str]], **kwargs: Any):
        super().__init__(**kwargs)
        self.columns = {name: (tuple(shape), dtype) for name, (shape, dtype) in columns.items()}

    def build(self, input_shape: Any = None) -> None:
        self.tensors = {
            name: self.add_weight(
                shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name, autocast=False
            )
            for name, (shape, dtype) in self.columns.items()
        }
        self.built = True

    def call(self, index: Any) -> dict[str, Any]:
        return {name: ops.take(tensor, index, axis=0) for name, tensor in self.tensors.items()}

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Assigns whole columns."""
        for name, value in values.items():
            self.tensors[name].assign(value)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "columns": self.columns}


@keras.saving.register_keras_serializable("tfrec")
class TwoTower(keras.Model):
    """User and item vectors whose inner product is the cosine of liking.

        score(u, v) = u · v,   logit = τ · u · v with a learned τ

    Args:
        schema: features and text columns, a :class:`Schema` or its dump.
        settings: the model section of the settings, or its dump.
        sizes: {"items": N, "users": U, "text_width": t, "tokens": S, "vocabularies": {feature: rows}}, and of sides
            whose rare ids share a row, "frequent": {"item": ids, "user": ids}.
        encoder: config of the :class:`TextEncoder` that learns with the towers; None = frozen text vectors.

    Call: {"history": int32 [B, L] item indices, oldest first, 0 = padding, "user": int32 [B]} -> float32 [B, L, d].
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        settings: Settings | Mapping[str, Any],
        sizes: Mapping[str, Any],
        encoder: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        # A fixed name: checkpoints and warm starts find variables by their path.
        super().__init__(**{"name": "two_tower", **kwargs})
        self.schema_ = schema if isinstance(schema, Schema) else Schema.model_validate(schema, strict=False)
        self.settings = settings if isinstance(settings, Settings) else Settings.model_validate(settings, strict=False)
        self.sizes, self.encoder_config = dict(sizes), encoder
        policy = {"dtype": self.dtype_policy}
        self.item_table = Table(self._columns("item"), name="item_table")
        self.user_table = Table(self._columns("user"), name="user_table")
        s = self.settings
        self.item_tower = ItemTower(
            s.dimension,
            items=sizes["items"] if s.item_id else 0,
            text_width=sizes["text_width"] if s.text != "none" else 0,
            encoder=encoder,
            table=self._id_table("item"),
            name="item_tower",
            **self._features("item"),
            **policy,
        )
        self.user_tower = UserTower(
            s.dimension,
            history=s.history,
            length=s.history_length,
            layers=s.layers,
            heads=s.heads,
            dropout=s.dropout,
            embedding_dropout=s.embedding_dropout,
            users=sizes["users"] if s.user_id else 0,
            table=self._id_table("user"),
            name="user_tower",
            **self._features("user"),
            **policy,
        )

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.item_table, self.user_table, self.item_tower, self.user_tower):
            if not layer.built:
                layer.build(None)
        start = keras.initializers.Constant(float(np.log(self.settings.temperature)))
        self.log_temperature = self.add_weight(shape=(), initializer=start, name="log_temperature", dtype="float32")
        self.built = True

    @property
    def temperature(self) -> Any:
        """τ, the multiplier of cosine logits, at most 100."""
        return ops.exp(ops.minimum(self.log_temperature, float(np.log(100.0))))

    def item_vectors(self, index: Any, training: bool = False) -> Any:
        """Unit item vectors float32 [R, d] of item indices int32 [R]; index 0 gives zeros."""
        known = ops.cast(ops.not_equal(index, 0), "float32")[:, None]
        return self.item_tower({"item": index, **self.item_table(index)}, training=training) * known

    def user_vectors(self, items: Any, mask: Any, user: Any, training: bool = False) -> Any:
        """Unit user vectors [B, L, d] from item vectors [B, L, d], mask [B, L] and user indices [B]."""
        return self.user_tower(items, mask, {"user": user, **self.user_table(user)}, training=training)

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        history = inputs["history"]
        shape = ops.shape(history)
        items = self.item_vectors(ops.reshape(history, (-1,)), training=training)
        items = ops.reshape(items, (*shape, self.settings.dimension))
        return self.user_vectors(items, ops.not_equal(history, 0), inputs["user"], training=training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "schema": self.schema_.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "sizes": self.sizes,
            "encoder": self.encoder_config,
        }

    def _id_table(self, side: Side) -> dict[str, Any]:
        table = self.settings.item_table if side == "item" else self.settings.user_table
        if table.min_count > 1:
            return {"kind": "frequent", "rows": self.sizes["frequent"][side]}
        return table.model_dump(include={"kind", "rows", "hashes"})

    def _features(self, side: Side) -> dict[str, Any]:
        features = self.schema_.side(side)
        sizes = self.sizes["vocabularies"]
        return {
            "vocabularies": {f.name: sizes[f.name] for f in features if f.indexed},
            "numeric": tuple(f.name for f in features if not f.indexed),
        }

    def _columns(self, side: Side) -> dict[str, tuple[tuple[int, ...], str]]:
        rows = self.sizes["items" if side == "item" else "users"] + 1
        columns: dict[str, tuple[tuple[int, ...], str]] = {
            f.name: ((rows, f.max_values), "int32") if f.indexed else ((rows,), "float32")
            for f in self.schema_.side(side)
        }
        if side == "item" and self.settings.text == "frozen":
            columns["text"] = ((rows, self.sizes["text_width"]), "float32")
        elif side == "item" and self.settings.text != "none":
            columns["tokens"] = ((rows, self.sizes["tokens"]), "int32")
        return columns
