"""JSON ↔ tensors: RapidJSON's words, number forms, and what survives a round trip."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfrec.server import json_response
from tfrec.server.api import Api
from tfrec.server.json_request import examples_input, make_example, predict_inputs, signature_name, to_tensor
from tfrec.server.json_text import decimals, describe, parse, quoted
from tfrec.server.manager import FixedModel
from tfrec.server.rest import Rest
from tfrec.server.servable import Servable, TensorInfo
from tfrec.server.status import RequestError

FLOAT = {"x": TensorInfo("x:0", tf.float32, (None,))}
TWO = {name: TensorInfo(f"{name}:0", tf.float32, (None,)) for name in ("a", "b")}


def words(call, *arguments):
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nul", "Invalid value. at offset: 3"),
        ("x", "Invalid value. at offset: 0"),
        ("  ", "The document is empty. at offset: 2"),
        ("{} 1", "The document root must not be followed by other values. at offset: 3"),
        ("{1: 2}", "Missing a name for object member. at offset: 1"),
        ('{"a" 2}', "Missing a colon after a name of object member. at offset: 5"),
        ('{"a": 2 "b"}', "Missing a comma or } after an object member. at offset: 8"),
        ('{"a": [1 2]}', "Missing a comma or ] after an array element. at offset: 9"),
        ('{"a": "b', "Missing a closing quotation mark in string. at offset: 6"),
        ('{"a": "\\x"}', "Invalid escape character in string. at offset: 7"),
        ('{"a": "\\u12x4"}', "Incorrect hex digit after \\u escape in string. at offset: 7"),
        ('{"a": 1.}', "Miss fraction part in number. at offset: 8"),
        ('{"a": 1e}', "Miss exponent in number. at offset: 8"),
        ('{"a": [1,]}', "Invalid value. at offset: 9"),
    ],
)
def test_parse_errors_in_rapidjsons_words(text, error):
    assert words(parse, text.encode()) == f"JSON Parse error: {error}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (2.0, "2.0"), (1 / 3, "0.333333343"), (16777216.0, "16777216.0"), (1e10, "1e+10"),
     (3e-5, "3e-05"), (-0.0, "-0.0"), (123456789.0, "123456792.0"), (np.nan, "NaN"), (-np.inf, "-Infinity")],
)  # fmt: skip
def test_float_forms(value, text):
    assert decimals(np.array([value], np.float32)) == [text]


@settings(deadline=None)
@given(st.sampled_from([np.float32, np.float64]).flatmap(lambda t: hnp.arrays(t, st.integers(1, 20))))
def test_every_number_reads_back(values):
    read = np.array([float(text.replace("Infinity", "inf")) for text in decimals(values)]).astype(values.dtype)
    np.testing.assert_array_equal(read, values)


# The nine digits of the largest float32 read as more than it, which TensorFlow Serving refuses.
LARGEST = float(np.float32(3.4e38))
VALUES = {
    tf.float32: st.floats(-LARGEST, LARGEST, width=32),
    tf.int32: st.integers(-(2**31), 2**31 - 1),
    tf.int64: st.integers(-(2**63), 2**63 - 1),
    tf.uint64: st.integers(0, 2**64 - 1),
    tf.bool: st.booleans(),
}
DTYPES = st.sampled_from(list(VALUES))


@settings(max_examples=60, deadline=None)
@given(DTYPES.flatmap(lambda t: hnp.arrays(t.as_numpy_dtype, hnp.array_shapes(max_dims=3), elements=VALUES[t])))
def test_tensors_survive_a_round_trip_in_both_forms(array):
    dtype = tf.as_dtype(array.dtype)
    infos = {"x": TensorInfo("x:0", dtype, None)}
    for write, key, given_key in (
        (json_response.predictions, "predictions", "instances"),
        (json_response.columns, "outputs", "inputs"),
    ):
        read = json.loads(write({"x": array}))[key]
        (got,), _ = predict_inputs({given_key: read}, infos)[0].values(), None
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5))
def test_bytes_survive_a_round_trip(values):
    array = np.empty(len(values), object)
    array[:] = values
    read = json.loads(json_response.predictions({"x_bytes": array}))["predictions"]
    assert to_tensor(read, tf.string).tolist() == values


ELEMENT = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"instances": [1], "inputs": [1]}, "Not formatted correctly expecting only one of 'inputs' or "
         "'instances' keys to exist "),
        ({"instances": {"x": 1}}, "Excepting 'instances' to be an list/array"),
        ({"instances": [1, {"x": 1}]}, "Expecting value/list but got object at item 1 of input list"),
        ({"instances": [{"x": 1}, 1]}, "Expecting object but got list at item 1 of input list"),
        ({"instances": [{"z": 1}]},
         ELEMENT.format("0 key: z") + "JSON object: does not have named input: z"),
        ({"instances": [[1, 2], [1]]},
         ELEMENT.format("1") + "Expecting tensor size: 2 but got: 1"),
        ({"instances": [[[1, 2]], [[1], [2]]]},
         ELEMENT.format("1") + "Expecting shape [1,2] but got: [2,1]"),
        ({"instances": [[1, [2]]]},
         ELEMENT.format("0") + "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": [[1, 2], [3]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ({"inputs": [[1], 2]}, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ({"inputs": {"z": 1}}, "Missing named input: x in 'inputs' object."),
        ({"inputs": [None]}, "JSON Value: null Type: Null is not of expected type: float"),
        ({"inputs": [True]}, "JSON Value: true Type: True is not of expected type: float"),
        ({"inputs": [1e39]}, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ({"inputs": [16777217]}, "Cannot convert JSON value: 16777217 to float without loss of precision."),
    ],
)  # fmt: skip
def test_predict_bodies_that_are_refused(document, text):
    assert words(predict_inputs, document, FLOAT).endswith(text)


def test_several_inputs_need_names():
    assert words(predict_inputs, {"instances": [1]}, TWO).startswith("instances is a plain list, but expecting list of")
    assert words(predict_inputs, {"inputs": [1]}, TWO).startswith("inputs is a plain value/list, but expecting an")
    text = words(predict_inputs, {"instances": [{"a": 1}]}, TWO)
    assert text == (
        "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1\n} keys must be equal to: a,b"
    )


def test_a_type_that_json_lacks():
    with pytest.raises(RequestError, match=r"Conversion of JSON Value: 1.0 to type: half") as caught:
        to_tensor([1.0], tf.float16)
    assert caught.value.code == "UNIMPLEMENTED"
    assert words(json_response.columns, {"x": np.ones(1, np.float16)}) == (
        "Failed to write JSON value for tensor type: half"
    )


def test_control_characters_are_escaped_as_rapidjson_does():
    assert quoted("\x1f\x0b\n\\u001f é\x7f") == '"\\u001F\\u000B\\n\\\\u001f é\x7f"'


def test_base64():
    assert to_tensor({"b64": "YQ"}, tf.string) == b"a"  # padding may be missing
    assert to_tensor({"b64": "YW Jj\nZA=="}, tf.string) == b"abcd"
    for text in ("?", "YQ=", "YQ===", "Y", "Y=Q="):
        assert words(to_tensor, [{"b64": text}], tf.string) == "Unable to base64 decode"
    assert words(to_tensor, [{"b64": "YQ==", "x": 1}], tf.string).endswith("not formatted correctly for base64 data")


def test_examples():
    example = make_example({"i": [1, True], "f": 0.5, "s": ["a", {"b64": "/w=="}]}).features.feature
    assert list(example["i"].int64_list.value) == [1, 1]
    assert list(example["f"].float_list.value) == [0.5]
    assert list(example["s"].bytes_list.value) == [b"a", b"\xff"]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": [1, 0.5]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": [None]}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
    ],
)
def test_examples_that_are_refused(document, text):
    assert words(examples_input, document).endswith(text)


def test_outputs_must_have_the_same_rows():
    text = words(json_response.predictions, {"a": np.ones(2), "b": np.ones(3)})
    assert text == "Tensor name: b has inconsistent batch size: 3 expecting: 2"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body):
    try:
        document = parse(body)
        predict_inputs(document, FLOAT)
    except RequestError as error:
        assert error.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*VALUES, tf.string]), JSON)
def test_any_value_becomes_a_tensor_or_is_refused(dtype, value):
    describe(value)
    try:
        array = to_tensor(value, dtype)
    except RequestError:
        return
    assert array.dtype == dtype.as_numpy_dtype


@pytest.fixture(scope="module")
def rest(half):
    manager = FixedModel("half", 1, Servable(half))
    yield Rest(Api(manager))
    manager.close()


METHODS = st.sampled_from(["predict", "classify", "regress"])
BODIES = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())
BODIES |= st.tuples(st.sampled_from(["instances", "inputs", "examples", "signature_name", "context"]), JSON).map(
    lambda pair: json.dumps({"instances": [1], **dict([pair])}).encode()
)


@settings(max_examples=200, deadline=None)
@given(METHODS, BODIES)
def test_any_body_gets_a_json_answer(rest, method, body):
    answer = rest.answer("POST", f"/v1/models/half:{method}", body)
    assert answer.status in (200, 400, 501)
    json.loads(answer.body.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"instances": ["\\ud800"]}', "The surrogate pair in string is invalid. at offset: 16"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "Number too big to be stored in double. at offset: 0"),
    ],
)
def test_what_python_reads_otherwise(body, text):
    assert words(parse, body) == f"JSON Parse error: {text}"


def test_of_a_key_that_is_there_twice_the_first_counts():
    document = parse(b'{"signature_name": "a", "inputs": {"a": [1], "b": [2], "a": [3]}, "signature_name": "b"}')
    assert signature_name(document) == "a"
    inputs, _ = predict_inputs(document, TWO)
    assert inputs["a"].tolist() == [1]
    assert words(to_tensor, parse(b'{"x": [{"b64": "YQ==", "b64": "Yg=="}]}')["x"], tf.string).endswith("base64 data")


def test_of_a_feature_that_is_there_twice_the_last_counts():
    example = make_example(parse(b'{"x": 1, "x": 2.5}')).features.feature
    assert list(example["x"].float_list.value) == [2.5]


def test_bytes_that_are_no_text_travel_as_they_are():
    document = parse(b'{"instances": ["\xff"]}')
    assert to_tensor(document["instances"], tf.string).tolist() == [b"\xff"]
