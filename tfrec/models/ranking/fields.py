"""Fields of a user, a candidate and their context → vectors and first-order weights that every body shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
from keras import ops

from tfrec.models.layers import RowEmbedding, mean_over_values
from tfrec.schema import Side

Kind = Literal["index", "number", "vector"]


class Field(NamedTuple):
    """One input of a ranker.

    Args:
        name: of the tensor.
        side: "item" tensors are [B, N, …], one row a candidate; "user" and "context" tensors are [B, …].
        kind: "index" is int32 […, m], 0 = none; "number" is float32 […]; "vector" is float32 […, size].
        size: rows of an index, row 0 included; width of a vector; 1 for a number.
    """

    name: str
    side: Side
    kind: Kind
    size: int


Inputs = Mapping[str, Any]
_TEXT, _MATCH = "text", ".match"


def text_fields(queries: Sequence[str], width: int) -> list[Field]:
    """Fields of an item's text, of texts of the context, and of how well each of these matches the item's."""
    vectors = [Field(name, "context", "vector", width) for name in queries]
    return [Field(_TEXT, "item", "vector", width), *vectors, *(Field(n + _MATCH, "item", "number", 1) for n in queries)]


def matches(fields: Sequence[Field], inputs: Inputs) -> dict[str, Any]:
    """√t · cosine of an item's text and a text of the context, for every field of one; of random directions it has the
    deviation 1. Both vectors have the length √t, or 0."""
    found = {}
    for field in fields:
        if field.name.endswith(_MATCH):
            text, query = inputs[_TEXT], inputs[field.name.removesuffix(_MATCH)]  # [B, N, t] and [B, t]
            found[field.name] = ops.sum(text * query[:, None], axis=-1) / text.shape[-1] ** 0.5
    return found


def of_candidates(x: Any, side: Side, inputs: Inputs) -> Any:
    """Repeats what belongs to the request for every candidate: [B, …] -> [B, N, …]; item tensors stay."""
    if side == "item":
        return x
    return ops.repeat(ops.expand_dims(x, 1), ops.shape(inputs["item"])[1], axis=1)


def _numbers(fields: Sequence[Field], inputs: Inputs, dtype: str) -> Any:
    """The tensors of number fields side by side, [B, N, F]."""
    columns = [of_candidates(ops.cast(inputs[f.name], dtype), f.side, inputs) for f in fields]
    return ops.stack(columns, axis=-1)


def _with_values(x: Any, rank: int) -> Any:
    """Adds the axis of values that ids and numbers come without."""
    return x if len(x.shape) > rank else x[..., None]


def _build_maps(fields: Sequence[Field], maps: Mapping[str, Any]) -> None:
    sizes = {field.name: field.size for field in fields}
    for name, layer in maps.items():
        layer.build() if isinstance(layer, RowEmbedding) else layer.build((None, sizes[name]))


@keras.saving.register_keras_serializable("tfrec")
class NumberVectors(keras.layers.Layer):
    """A vector of each number, y_f = x_f w_f + b_f, all at once: a layer a number costs more than its arithmetic.

    Args:
        dimension: d.

    Call: [..., F] -> [..., F, d].
    """

    def __init__(self, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.dimension = dimension

    def build(self, input_shape: Sequence[int | None]) -> None:
        shape, limit = (input_shape[-1], self.dimension), (6 / (1 + self.dimension)) ** 0.5  # as one Dense each
        self.kernel = self.add_weight(
            shape=shape, initializer=keras.initializers.RandomUniform(-limit, limit), name="w"
        )
        self.bias = self.add_weight(shape=shape, initializer="zeros", name="b")
        self.built = True

    def call(self, x: Any) -> Any:
        return x[..., None] * self.kernel + self.bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dimension": self.dimension}


@keras.saving.register_keras_serializable("tfrec")
class FieldVectors(keras.layers.Layer):
    """One vector of a common width a field.

        index: mean of the embeddings of its values     number: x · w + b     vector: W x

    Args:
        fields: the inputs.
        dimension: d.
        dropout: on the vectors.
        history: item fields that items of the history have too, as inputs "history_<name>".
        events: rows of "history_event", the kinds of history items; 0 = none.
        pooled: whether the mean of the history is one more field, the last.
        ages: rows of "history_age", how long ago history items were; 0 = none. Row 0 adds nothing.

    Call: inputs -> [B, N, F, d], fields in their order. Index 0 adds nothing.
    """

    def __init__(
        self,
        fields: Sequence[Sequence[Any]],
        dimension: int,
        dropout: float = 0.0,
        history: Sequence[str] = (),
        events: int = 0,
        pooled: bool = False,
        ages: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.fields, self.dimension, self.dropout = tuple(Field(*f) for f in fields), dimension, dropout
        self.history_fields, self.pooled = tuple(history), pooled
        self.events, self.ages = (events, ages) if history else (0, 0)
        policy = {"dtype": self.dtype_policy}
        small = keras.initializers.RandomNormal(stddev=0.05)
        self.maps: dict[str, Any] = {
            f.name: RowEmbedding(f.size, dimension, small, name=f.name, **policy)
            if f.kind == "index"
            else keras.layers.Dense(dimension, use_bias=False, name=f.name, **policy)
            for f in self.fields
            if f.kind != "number"
        }
        self.numbers = tuple(f for f in self.fields if f.kind == "number")
        self.number_map: Any = NumberVectors(dimension, name="numbers", **policy) if self.numbers else None
        self.event_map: Any = (
            RowEmbedding(events, dimension, small, name="history_event", **policy) if self.events else None
        )
        self.age_map: Any = RowEmbedding(ages, dimension, small, name="history_age", **policy) if self.ages else None
        self.drop = keras.layers.Dropout(dropout, name="drop", **policy)

    @property
    def width(self) -> int:
        """F, the fields of the output."""
        return len(self.fields) + self.pooled

    def build(self, input_shape: Any = None) -> None:
        _build_maps(self.fields, self.maps)
        for layer in (self.event_map, self.age_map):
            if layer:
                layer.build()
        if self.number_map:
            self.number_map.build((None, len(self.numbers)))
        self.drop.build((None, None, self.width, self.dimension))
        self.built = True

    def history(self, inputs: Inputs, training: bool = False) -> Any:
        """Vectors [B, L, d] of the history: the sum of its fields, of what kind of event it was and how long ago."""
        parts = [self._one(name, inputs[f"history_{name}"], rank=2) for name in self.history_fields]
        if self.event_map:
            parts.append(self.event_map(inputs["history_event"]))
        if self.age_map:
            ages = inputs["history_age"]
            parts.append(self.age_map(ages) * ops.cast(ages > 0, self.compute_dtype)[..., None])
        return self.drop(sum(parts[1:], parts[0]), training=training)

    def call(self, inputs: Inputs, training: bool = False) -> Any:
        found = {
            f.name: of_candidates(self._one(f.name, inputs[f.name], 1 + (f.side == "item")), f.side, inputs)
            for f in self.fields
            if f.kind != "number"
        }
        if self.number_map:
            vectors = ops.unstack(self.number_map(_numbers(self.numbers, inputs, self.compute_dtype)), axis=2)
            found |= {f.name: vector for f, vector in zip(self.numbers, vectors, strict=True)}
        parts = [found[f.name] for f in self.fields]
        if self.pooled:
            mean = mean_over_values(self.history(inputs, training=training), inputs["history_item"])
            parts.append(of_candidates(mean, "user", inputs))
        return self.drop(ops.stack(parts, axis=2), training=training)

    def _one(self, name: str, x: Any, rank: int) -> Any:
        """Vectors of one field's tensor, whose rows have ``rank`` axes."""
        layer = self.maps[name]
        if isinstance(layer, RowEmbedding):
            x = _with_values(x, rank)
            return mean_over_values(layer(x), x)
        return layer(ops.cast(x, self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        own = {
            "fields": [list(f) for f in self.fields],
            "dimension": self.dimension,
            "dropout": self.dropout,
            "history": self.history_fields,
            "events": self.events,
            "pooled": self.pooled,
            "ages": self.ages,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfrec")
class LinearTerms(keras.layers.Layer):
    """First-order terms, the "wide" part.

        y = b + Σ_index mean_m w[value_m] + Σ_number w x + Σ_vector w·x + Σ_crosses w[h(a, c)]

    A cross is a weight for every pair of values of two index fields, hashed to ``cross_rows`` rows.

    Args:
        fields: the inputs.
        crosses: pairs of names of index fields.
        cross_rows: rows that the pairs of one cross share.

    Call: inputs -> [B, N].
    """

    def __init__(
        self,
        fields: Sequence[Sequence[Any]],
        crosses: Sequence[Sequence[str]] = (),
        cross_rows: int = 10_000,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.fields = tuple(Field(*f) for f in fields)
        self.crosses, self.cross_rows = tuple(tuple(pair) for pair in crosses), cross_rows
        self.maps: dict[str, Any] = {
            f.name: RowEmbedding(f.size, 1, "zeros", name=f.name, dtype=self.dtype_policy)
            if f.kind == "index"
            else keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name=f.name, dtype=self.dtype_policy)
            for f in self.fields
            if f.kind != "number"
        }
        self.numbers = tuple(f for f in self.fields if f.kind == "number")
        self.pairs: list[RowEmbedding] = [
            RowEmbedding(cross_rows + 1, 1, "zeros", name=f"{a}_x_{b}", dtype=self.dtype_policy)
            for a, b in self.crosses
        ]

    def build(self, input_shape: Any = None) -> None:
        _build_maps(self.fields, self.maps)
        for pair in self.pairs:
            pair.build()
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")
        if self.numbers:
            self.slopes = self.add_weight(shape=(len(self.numbers), 1), initializer="zeros", name="slopes")
        self.built = True

    def call(self, inputs: Inputs) -> Any:
        total = ops.cast(self.bias, self.compute_dtype)
        for field in (f for f in self.fields if f.kind != "number"):
            x, layer = inputs[field.name], self.maps[field.name]
            if field.kind == "index":
                x = _with_values(x, 1 + (field.side == "item"))
                term = mean_over_values(layer(x), x)
            else:
                term = layer(ops.cast(x, self.compute_dtype))
            total = total + of_candidates(term, field.side, inputs)[..., 0]
        if self.numbers:
            total = total + ops.matmul(_numbers(self.numbers, inputs, self.compute_dtype), self.slopes)[..., 0]
        for (a, b), layer in zip(self.crosses, self.pairs, strict=True):
            pairs = self._pairs(self._candidates(a, inputs), self._candidates(b, inputs))
            total = total + mean_over_values(layer(pairs), pairs)[..., 0]
        return total

    def _candidates(self, name: str, inputs: Inputs) -> Any:
        field = next(f for f in self.fields if f.name == name)
        values = _with_values(inputs[name], 1 + (field.side == "item"))
        return of_candidates(values, field.side, inputs)  # [B, N, m]

    def _pairs(self, a: Any, b: Any) -> Any:
        """Rows [B, N, m · n] of every pair of values; 0 where either is none."""
        a, b = ops.cast(a, "int64")[..., :, None], ops.cast(b, "int64")[..., None, :]
        # Fibonacci hashing spreads consecutive indices; the product stays below 2^63.
        mixed = ops.mod(a * 2_654_435_761 + b * 40_503, 2_147_483_647)
        rows = ops.where(ops.logical_and(a > 0, b > 0), ops.mod(mixed, self.cross_rows) + 1, 0)
        return ops.cast(ops.reshape(rows, (*ops.shape(rows)[:-2], -1)), "int32")

    def get_config(self) -> dict[str, Any]:
        own = {"fields": [list(f) for f in self.fields], "crosses": self.crosses, "cross_rows": self.cross_rows}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfrec")
class HiddenLayers(keras.layers.Layer):
    """Dense layers with ReLU and dropout.

    Args:
        units: width of each layer.
        dropout: after each layer.

    Call: [..., w] -> [..., units[-1]].
    """

    def __init__(self, units: Sequence[int], dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.dropout = tuple(units), dropout
        policy = {"dtype": self.dtype_policy}
        self.dense: list[keras.layers.Dense] = [
            keras.layers.Dense(width, "relu", kernel_initializer="he_normal", name=f"dense_{i}", **policy)
            for i, width in enumerate(self.units)
        ]
        self.drop = keras.layers.Dropout(dropout, name="drop", **policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        width = input_shape[-1]
        for layer in self.dense:
            layer.build((None, width))
            width = layer.units
        self.drop.build((None, width))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        for layer in self.dense:
            x = self.drop(layer(x), training=training)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "dropout": self.dropout}


def flat(vectors: Any) -> Any:
    """[B, N, F, d] -> [B, N, F · d]."""
    shape = ops.shape(vectors)
    return ops.reshape(vectors, (shape[0], shape[1], vectors.shape[2] * vectors.shape[3]))
