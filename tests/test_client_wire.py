"""The client's messages are TensorFlow Serving's, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tfrec.client import calls, wire
from tfrec.client.attempts import RefusedError

IDS = st.lists(st.text(max_size=5), max_size=4)
REAL = {
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
}


def same_on_the_wire(ours, real, path: str, seen: set[str]) -> None:
    for field in ours.fields:
        found = real.fields_by_number[field.number]
        assert (field.name, field.is_repeated) == (found.name, found.is_repeated), path
        enum = found.type == found.TYPE_ENUM
        assert field.type == (field.TYPE_INT32 if enum else found.type), f"{path}.{field.name}"
        if field.message_type and field.message_type.name not in seen:
            seen.add(field.message_type.name)
            same_on_the_wire(field.message_type, found.message_type, f"{path}.{field.name}", seen)


@pytest.mark.parametrize("name", sorted(REAL))
def test_the_messages_are_those_of_tensorflow_serving(name):
    same_on_the_wire(wire.MESSAGES[name].DESCRIPTOR, REAL[name].DESCRIPTOR, name, set())


def test_numbers_of_types_and_states_are_tensorflows():
    for number, name in enumerate(wire.DTYPES):
        assert types_pb2.DataType.Name(number) == f"DT_{name}"
    assert {number: name for name, number in get_model_status_pb2.ModelVersionStatus.State.items()} == wire.STATES


@settings(max_examples=100, deadline=None)
@given(user=st.text(max_size=5), history=IDS, exclude=IDS, k=st.integers(-(2**31) + 1, 2**31 - 1), rows=st.booleans())
def test_tensorflow_reads_what_is_sent(user, history, exclude, k, rows):
    form = calls.BatchedForm(history=3, exclude=4) if rows else None
    call = calls.recommend(form, user, history, exclude, k)
    sent = wire.predict_request(calls.Model("shop"), call).SerializeToString()
    real = predict_pb2.PredictRequest.FromString(sent)
    assert (real.model_spec.name, real.model_spec.signature_name) == ("shop", "recommend")
    found = {name: tf.make_ndarray(tensor) for name, tensor in real.inputs.items()}
    assert (found["k"].dtype, found["k"].tolist()) == (np.int32, [k] if rows else k)
    assert found["user_id"].tolist() == [user.encode()]
    for name, ids in (("history", history[-3:] if rows else history), ("exclude", exclude)):
        width = {"history": 3, "exclude": 4}[name] if rows else len(ids)
        assert found[name].shape == (1, width)
        assert found[name][0].tolist() == [b""] * (width - len(ids)) + [text.encode() for text in ids]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=9, max_size=9),
    texts=st.lists(st.text(max_size=3), min_size=9, max_size=9),
    short=st.booleans(),
)
def test_what_tensorflow_sends_is_read(shape, values, texts, short):
    size = shape[0] * shape[1]
    scores = np.array(values[:size], np.float32).reshape(shape)
    names = np.array([text.encode() for text in texts[:size]], object).reshape(shape)
    real = predict_pb2.PredictResponse()
    real.outputs["scores"].CopyFrom(tf.make_tensor_proto(scores))
    if short and size:  # typed values, of which the last may stand for all that follow
        real.outputs["scores"].CopyFrom(tf.make_tensor_proto(values[0], tf.float32, shape))
        scores = np.full(shape, values[0], np.float32)
    real.outputs["item_ids"].CopyFrom(tf.make_tensor_proto(names, tf.string, shape))
    response = wire.PREDICT.response.FromString(real.SerializeToString())
    call = calls.search(None, "", [], 1)
    read = wire.read_outputs(response, call)
    assert read == {"scores": scores.tolist(), "item_ids": [[text.decode() for text in row] for row in names.tolist()]}


@pytest.mark.parametrize("name", ["scores", "other"])
def test_an_output_that_is_absent_or_of_another_type_is_refused(name):
    response = predict_pb2.PredictResponse()
    response.outputs[name].CopyFrom(tf.make_tensor_proto([[1]], tf.int32))
    with pytest.raises(RefusedError, match="the answer lacks scores"):
        wire.read_outputs(wire.PREDICT.response.FromString(response.SerializeToString()), calls.rank(None, "", [], []))


@pytest.mark.parametrize("sizes", [[3], [1, -1], [2**40]])
def test_values_that_do_not_fill_the_shape_are_refused(sizes):
    response = wire.PREDICT.response()
    scores = response.outputs.add(key="scores").value
    scores.dtype, scores.tensor_content = 1, b"\0" * 8
    for size in sizes:
        scores.tensor_shape.dim.add(size=size)
    with pytest.raises(RefusedError, match="values for the shape"):
        wire.read_outputs(response, calls.rank(None, "", [], []))


def test_the_context_of_a_ranking_is_strings_and_floats():
    call = calls.rank(None, "u", ["a"], ["b", "c"], context={"query": "saw", "hour": 3})
    sent = wire.predict_request(calls.Model("shop"), call).SerializeToString()
    found = {n: tf.make_ndarray(x) for n, x in predict_pb2.PredictRequest.FromString(sent).inputs.items()}
    assert found["query"].tolist() == [b"saw"]
    assert (found["hour"].dtype, found["hour"].tolist()) == (np.float32, [3.0])
    assert {"user_id", "history", "item_ids"} < {*found}
