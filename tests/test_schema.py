"""Features by side and kind."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tfrec.schema import Feature, Schema

TAGS = Feature(name="tags", side="item", kind="categorical", separator="|", max_values=3)
PRICE = Feature(name="price", side="item", kind="numeric")
AGE = Feature(name="age", side="user", kind="numeric")


def test_features_are_grouped_by_side_in_their_order() -> None:
    schema = Schema(features=(PRICE, AGE, TAGS), text=("title",))
    assert schema.side("item") == (PRICE, TAGS)
    assert schema.side("user") == (AGE,)
    assert schema.side("context") == ()


def test_an_item_is_embedded_from_its_text_and_features_each_column_once() -> None:
    schema = Schema(features=(PRICE, AGE, TAGS), text=("title", "tags"))
    assert schema.item_columns() == ("title", "tags", "price")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "pattern"),
        ({"name": "1a"}, "pattern"),
        ({"name": ""}, "pattern"),
        ({"name": "_a"}, "pattern"),
        ({"name": "class"}, "a column cannot be named class"),
        ({"name": "self"}, "a column cannot be named self"),
        ({"side": "shop"}, "'user', 'item' or 'context'"),
        ({"kind": "image"}, "'categorical', 'numeric', 'vector' or 'text'"),
        ({"kind": "text"}, "text is of the context, in one piece; features.text reads items"),
        ({"kind": "text", "side": "context", "separator": ","}, "text is of the context, in one piece"),
        ({"max_values": 0}, "greater than or equal to 1"),
        ({"max_values": 2}, "max_values above 1 needs a separator"),
        ({"max_vocabulary": 0}, "greater than or equal to 1"),
        ({"kind": "numeric", "min_count": 2}, "min_count goes with"),
        ({"hash_rows": 9, "min_count": 2}, "min_count goes with"),
        ({"kind": "numeric", "separator": ","}, "a number is not split"),
        ({"vocabulary": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_feature_that_cannot_be_read_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"name": "tags", "side": "item", "kind": "categorical"}
    assert Feature(**good)
    with pytest.raises(ValidationError, match=message):
        Feature(**{**good, **change})


def test_a_schema_comes_back_from_json() -> None:
    schema = Schema(features=(TAGS, PRICE, AGE), text=("title",))
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
