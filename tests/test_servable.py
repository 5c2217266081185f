"""A SavedModel in a session: answers, defaults, threads, and errors in TensorFlow Serving's words."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tests.saved_models import LOWEST, save_shop, save_untracked_variable, strings
from tfrec.errors import ServerError
from tfrec.server.servable import RequestError, Servable
from tfrec.server.tensors import packed, to_array, to_proto

NOBODY = {"user_id": strings(["u"]), "history": strings([[]])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_shop(tmp_path_factory.mktemp("shop") / "1")


@pytest.fixture(scope="module")
def shop(folder):
    servable = Servable(folder)
    yield servable
    servable.close()


def test_recommend_scores_by_hand(shop):
    # apple = (1, 0, .5) against the history (1, 0, .25), plus popularity 5 / 100: 1 + .125 + .05
    answer = shop.run("recommend", {"user_id": strings(["u"]), "history": strings([["pear"]]), "k": np.int32(2)})
    assert answer["item_ids"].tolist() == [[b"apple", b"hammer"]]
    np.testing.assert_allclose(answer["scores"], [[1.175, 0.5 * 0.25 + 0.03]], rtol=1e-6)


def test_strings_are_tokenised_in_the_graph(shop):
    answer = shop.run("search", {"query": strings(["TOOLS!", "früit"]), "k": np.int32(1)})
    assert answer["item_ids"].tolist() == [[b"hammer"], [b"apple"]]


def test_left_out_inputs_come_from_the_signature_defaults(shop):
    assert shop.signatures["recommend"].defaults["k"] == 3
    assert shop.run("recommend", NOBODY)["item_ids"].tolist() == [[b"apple", b"pear", b"hammer"]]


def test_no_signature_name_means_serving_default(shop):
    assert shop.run("", NOBODY)["item_ids"].tolist() == shop.run("serving_default", NOBODY)["item_ids"].tolist()


def test_empty_batch_and_one_k_per_row(shop):
    empty = shop.run("search", {"query": strings([])})
    assert empty["item_ids"].shape == (0, 3) and empty["scores"].dtype == np.float32
    both = shop.run("search", {"query": strings(["tool", "fruit"]), "k": np.array([1, 2], np.int32)})
    assert both["scores"].shape == (2, 2)


def test_signatures_name_dtypes_and_shapes(shop):
    search = shop.signatures["search"]
    assert {name: (i.dtype, i.shape) for name, i in search.inputs.items()} == {
        "query": (tf.string, (None,)),
        "exclude": (tf.string, (None, None)),
        "k": (tf.int32, None),
    }
    assert search.method == "tensorflow/serving/predict"


def test_only_the_outputs_asked_for(shop):
    assert list(shop.run("recommend", NOBODY, ["scores"])) == ["scores"]


def test_threads_get_their_own_answers(shop):
    queries = ["tool", "fruit"] * 40
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda q: shop.run("search", {"query": strings([q])})["item_ids"][0, 0], queries))
    assert answers == [b"hammer", b"apple"] * 40


@pytest.mark.parametrize(
    ("signature", "inputs", "outputs", "code", "words"),
    [
        ("nope", {}, (), "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ("rank", NOBODY, (), "INVALID_ARGUMENT", "input size does not match signature: 2!=3 len({history,user_id})"),
        (
            "search",
            {"k": np.int32(1)},
            (),
            "INVALID_ARGUMENT",
            "Signature input alias: query(feed name: search_query:0)",
        ),
        ("search", {"query": strings(["a"]), "x": np.int32(1)}, (), "INVALID_ARGUMENT", "Inputs contains invalid name"),
        (
            "search",
            {"query": np.zeros(1)},
            (),
            "INVALID_ARGUMENT",
            "Expects arg[2] to be string but double is provided",
        ),
        ("search", {"query": strings(["a"]), "k": np.int32(0)}, (), "INVALID_ARGUMENT", "k must be at least 1"),
        ("recommend", NOBODY, ["x"], "INVALID_ARGUMENT", "output tensor alias not found in signature: x"),
        ("recommend", NOBODY, ["scores"] * 2, "INVALID_ARGUMENT", "duplicate output tensor alias: scores"),
    ],
)
def test_refusals_in_tensorflow_serving_words(shop, signature, inputs, outputs, code, words):
    with pytest.raises(RequestError) as caught:
        shop.run(signature, inputs, outputs)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_an_untracked_variable_fails_at_run_as_in_serving(tmp_path):
    servable = Servable(save_untracked_variable(tmp_path / "1"))
    with pytest.raises(RequestError, match="Could not find variable"):
        servable.run("embed", {"x": np.ones((1, 3), np.float32)})
    servable.close()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        ServerError, match=r"Could not find SavedModel .pb or .pbtxt at supplied export directory path: .*gone"
    ):
        Servable(tmp_path / "gone")


def test_damaged_files_are_refused(folder, tmp_path):
    copy = tmp_path / "1"
    copy.mkdir()
    (copy / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes()[:1000])
    with pytest.raises(ServerError, match=r"Can't parse .*saved_model.pb as binary proto"):
        Servable(copy)


def test_a_model_without_text_ops_loads_where_tensorflow_text_is_absent(tmp_path):
    module = tf.Module()
    module.weight = tf.Variable(2.0)
    double = tf.function(lambda x: {"y": x * module.weight}, input_signature=[tf.TensorSpec([None], name="x")])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": double})
    code = (
        "import importlib.util, sys, numpy\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'tensorflow_text' else find(name, *a)\n"
        "from tfrec.server.servable import Servable\n"
        "assert Servable(sys.argv[1]).run('', {'x': numpy.ones(1, 'float32')})['y'] == 2"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "1")], check=True, cwd=Path(__file__).parents[1])


DTYPES = st.sampled_from(["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"])


@settings(max_examples=60, deadline=None)
@given(DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))))
def test_tensors_round_trip_in_both_forms(array):
    for got in (to_array(to_proto(array)), to_array(tf.make_tensor_proto(array))):
        assert got.dtype == array.dtype and got.shape == array.shape
        np.testing.assert_array_equal(got, array)


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_byte_strings_round_trip(values):
    array = np.empty(len(values), object)
    array[:] = values
    assert to_array(to_proto(array)).tolist() == values


@pytest.mark.parametrize(
    "array",
    [np.array([[1.5, -2.0]], np.float32), np.zeros((0, 3), np.int64), strings([["a", "früit"], ["", "x" * 300]])],
    ids=["float", "empty", "strings"],
)
def test_tensor_content_is_read_by_the_runtime(array):
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    read = tf.io.parse_tensor(packed(array), dtype).numpy()
    assert read.shape == array.shape and read.tolist() == array.tolist()
    assert bool(TensorProto.FromString(packed(array)).tensor_content) == bool(array.size)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_floats_round_trip(dtype):
    array = np.array([[1.5, -2.0]], dtype.as_numpy_dtype)
    np.testing.assert_array_equal(tf.make_ndarray(to_proto(array)), array)
    np.testing.assert_array_equal(to_array(to_proto(array)), array)


def test_fewer_values_than_elements_repeat_the_last_as_in_the_runtime():
    proto = to_proto(np.array([1.0, 2.0], np.float32))
    proto.tensor_shape.dim[0].size = 4
    assert to_array(proto).tolist() == [1, 2, 2, 2]
    proto.ClearField("float_val")
    assert to_array(proto).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "size"), [(b"\0\0\0\0", -1), (b"\0\0\0\0", 2), (b"\0\0\0", 1)], ids=["open", "short", "cut"]
)
def test_malformed_tensors_are_refused(content, size):
    proto = to_proto(np.zeros(0, np.float32))
    proto.tensor_content = content
    proto.tensor_shape.dim[0].size = size
    with pytest.raises(ValueError, match=r"shape|size"):
        to_array(proto)


def test_an_unknown_item_scores_lowest(shop):
    answer = shop.run("rank", {**NOBODY, "history": strings([["saw"]]), "item_ids": strings([["nail", "?"]])})
    np.testing.assert_allclose(answer["scores"], [[1 + 0.25 * 0.125, LOWEST]])
