"""What a request to a cascade can say, read and held to its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrec.artifact import filters
from tfrec.artifact.diversify import Varied
from tfrec.artifact.requests import checked, one_a_row, rows_of
from tfrec.artifact.take import whole

RETRIEVAL, WITH = "retrieval", "_with"
WEIGHTS = ("weight_names", "weights")
LISTS = ("allow_categories", "deny_categories")
NUMBERS = {"diversity": tf.float32, "per_category": tf.int32, "min_price": tf.float32, "max_price": tf.float32}
OPTIONS = {
    **{name: tf.TensorSpec(None, dtype, name=name) for name, dtype in NUMBERS.items()},  # one, or one a request
    **{name: tf.TensorSpec([None, None], tf.string, name=name) for name in (*LISTS, "weight_names")},
    "weights": tf.TensorSpec([None, None], tf.float32, name="weights"),
}
Tensors = Mapping[str, tf.Tensor]


class Options(NamedTuple):
    """Weights by term, numbers or [B]; how varied the answer is; what it may hold."""

    weights: Mapping[str, Any]
    varied: Varied | None
    allowed: filters.Allowed | None


@dataclass(frozen=True)
class Reader:
    """Reads options.

    Args:
        prices, categories: of the items, as :mod:`tfrec.artifact.filters` takes them; None = not known.
        category_index: names -> int32, 0 = unknown.
    """

    prices: tf.Variable | None
    categories: tf.Variable | None
    category_index: Callable[[tf.Tensor], tf.Tensor]

    def read(self, given: Tensors, rows: tf.Tensor, plain: Mapping[str, float]) -> Options:
        """What a request asks for; without inputs nothing but the weights of the artefact."""
        if not given:
            return Options(plain, None, None)
        read = {name: one_a_row(given[name], rows, name) for name in NUMBERS}
        lists = {name: rows_of(given[name], rows, name) for name in LISTS}
        return Options(self.weights(given, rows, plain), self._varied(read), self._allowed(read, lists))

    def weights(self, given: Tensors, rows: tf.Tensor, plain: Mapping[str, float]) -> Mapping[str, Any]:
        """Of every term, a number or [B]: those that a request names, and the artefact's."""
        if not given:
            return plain
        names, numbers = (rows_of(given[name], rows, name) for name in WEIGHTS)
        widths = tf.shape(numbers)[1], "for", tf.shape(names)[1]
        fits = tf.shape(numbers)[1] == tf.shape(names)[1]
        numbers = checked(numbers, fits, ["weights must have as many columns as weight_names; got", *widths])
        finite = tf.reduce_all(tf.math.is_finite(numbers))
        numbers = checked(numbers, finite, ["weights must be finite numbers; got", numbers])
        terms = tf.constant(list(plain))
        known = tf.reduce_all(tf.reduce_any(names[..., None] == tf.concat([terms, [""]], 0), axis=-1))
        names = checked(names, known, ["weight_names must be among", terms, "; got", names])
        return {name: _named(names == name, numbers, weight) for name, weight in plain.items()}

    def _varied(self, numbers: Tensors) -> Varied:
        strength, most = numbers["diversity"], numbers["per_category"]
        inside = tf.reduce_all((strength >= 0) & (strength <= 1))
        strength = checked(strength, inside, ["diversity must be in [0, 1]; got", strength])
        most = checked(most, tf.reduce_all(most >= 0), ["per_category must be at least 0; got", most])
        if self.categories is None:
            rule = ["per_category needs a recommender that knows categories; got", most]
            most = checked(most, tf.reduce_all(most == 0), rule)
        return Varied(strength, most)

    def _allowed(self, numbers: Tensors, lists: Tensors) -> filters.Allowed:
        low, high = numbers["min_price"], numbers["max_price"]
        allow, deny = lists["allow_categories"], lists["deny_categories"]
        prices, categories = whole(self.prices), whole(self.categories)
        if prices is None:
            priced = tf.reduce_any((low > 0) | (high < filters.NO_LIMIT))
            low = checked(low, ~priced, ["price bounds need a recommender that knows prices; got", low, "and", high])
            prices = tf.zeros([1])
        if categories is None:
            named = tf.reduce_any(allow != "") | tf.reduce_any(deny != "")
            allow = checked(allow, ~named, ["categories need a recommender that knows them; got", allow, "and", deny])
            categories = tf.zeros([1, 1], tf.int32)
        index, given = self.category_index, tf.reduce_any(allow != "", axis=1)
        rules = [filters.within_price(prices, low, high)]
        rules.append(filters.within_categories(categories, index(allow), given, index(deny)))
        return filters.all_of(rules)


def _named(place: tf.Tensor, numbers: tf.Tensor, plain: float) -> tf.Tensor:
    """The sum of the numbers at a place, bool [B, W], or where there is none what is plain, float32 [B]."""
    return tf.where(tf.reduce_any(place, axis=1), tf.reduce_sum(tf.where(place, numbers, 0.0), axis=1), plain)


def defaults(signature: str) -> dict[str, Any]:
    """Values of the options of a signature that takes them."""
    if not signature.endswith(WITH):
        return {}
    nothing, values = np.empty((1, 0), object), dict.fromkeys(LISTS, np.empty((1, 0), object))
    made: dict[str, Any] = {"weight_names": nothing, "weights": np.empty((1, 0), np.float32)}
    if signature == f"rank{WITH}":
        return made
    if signature == f"search{WITH}":
        made |= {"user_id": np.array([""], object), "history": nothing}
    limit = {"min_price": np.float32(0), "max_price": np.float32(filters.NO_LIMIT)}
    return made | values | limit | {"diversity": np.float32(0), "per_category": np.int32(0)}
