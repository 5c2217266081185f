"""Every call over gRPC against one server in this process."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, inference_pb2, regression_pb2
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.half_plus_two import ECHOED, add_version, edit, predict_request
from tfrec.server.examples import run_regress
from tfrec.server.grpc_server import Model, start
from tfrec.server.manager import Loading, Manager
from tfrec.server.predict import run_predict
from tfrec.server.servable import CLASSIFY, PREDICT, REGRESS, Servable
from tfrec.server.status import RequestError
from tfrec.server.tensors import to_array, to_proto


@pytest.fixture(scope="module")
def channel(half):
    manager = Model("half", 3, Servable(half))
    server, port = start(manager, "127.0.0.1", 0, 2, health_check=True)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield channel
    server.stop(None).wait()
    manager.close()


@pytest.fixture(scope="module")
def stub(channel):
    return PredictionServiceStub(channel)


def refusal(call, argument):
    with pytest.raises(grpc.RpcError) as caught:
        call(argument, timeout=20)
    return caught.value.code().name, caught.value.details()


def examples(*values, context=None):
    made = Input()
    listed = made.example_list if context is None else made.example_list_with_context
    for value in values:
        example = listed.examples.add()
        if value is not None:
            example.features.feature["x"].float_list.value.append(value)
    if context is not None:
        listed.context.features.feature["x"].float_list.value.append(context)
    return made


def spec_of(request, signature="", model="half"):
    request.model_spec.name, request.model_spec.signature_name = model, signature
    return request


@pytest.mark.parametrize("name", ECHOED)
@pytest.mark.parametrize("packed", [True, False], ids=["content", "typed"])
def test_predict_echoes_every_dtype(stub, name, packed):
    array = np.array([[0, 1], [2, 100]]).astype(tf.as_dtype(name).as_numpy_dtype)
    request = predict_request("half", f"echo_{name}")
    if packed:
        request.inputs["x"].dtype = tf.as_dtype(name).as_datatype_enum
        request.inputs["x"].tensor_shape.dim.add(size=2)
        request.inputs["x"].tensor_shape.dim.add(size=2)
        request.inputs["x"].tensor_content = array.tobytes()
    else:
        request.inputs["x"].CopyFrom(to_proto(array))
    answer = stub.Predict(request, timeout=20).outputs["x"]
    assert not answer.tensor_content
    np.testing.assert_array_equal(to_array(answer), array)
    np.testing.assert_array_equal(tf.make_ndarray(answer), array)


def test_messages_above_four_mebibytes(stub):
    array = np.arange(2_000_000, dtype=np.float64)
    answer = stub.Predict(predict_request("half", "echo_float64", x=array), timeout=20)
    np.testing.assert_array_equal(to_array(answer.outputs["x"]), array)


@pytest.mark.parametrize(
    ("inputs", "code", "text"),
    [
        ({}, "INVALID_ARGUMENT", "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
         "Missing but required: {x}."),
        ({"x": [1], "z": [1]}, "INVALID_ARGUMENT", "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
         "Sent extra: {z}. Missing but required: {}."),
        ({"z": [1]}, "INVALID_ARGUMENT", "Signature input alias: x(feed name: serving_default_x:0) not found in "
         "request and no default value provided. Inputs expected to be in the request {z}, or default input alias "
         "set: "),
        ({"x": np.array([1])}, "INVALID_ARGUMENT", "Expects arg[0] to be float but int64 is provided"),
        ({"x": np.array(["a"], object)}, "INVALID_ARGUMENT", "Expects arg[0] to be float but string is provided"),
    ],
)  # fmt: skip
def test_predict_refuses_wrong_inputs(stub, inputs, code, text):
    assert refusal(stub.Predict, predict_request("half", **inputs)) == (code, text)


def test_the_signature_is_looked_up_before_its_inputs_are_read(stub):
    request = predict_request("half", "nope", x=[1])
    request.inputs["x"].tensor_shape.dim[0].size = -1
    assert refusal(stub.Predict, request) == ("FAILED_PRECONDITION", 'Serving signature key "nope" not found.')


def test_an_empty_batch_is_answered(stub):
    assert to_array(stub.Predict(predict_request("half", x=[]), timeout=20).outputs["y"]).shape == (0,)


def test_no_model_name(stub):
    assert refusal(stub.Predict, predict_request("")) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_regress(stub):
    request = spec_of(regression_pb2.RegressionRequest(input=examples(1.0, 4.0)), "regress")
    answer = stub.Regress(request, timeout=20)
    assert [r.value for r in answer.result.regressions] == [2.5, 4.0]
    assert (answer.model_spec.signature_name, answer.model_spec.version.value) == ("regress", 3)


def test_the_context_belongs_to_every_example(stub):
    request = spec_of(regression_pb2.RegressionRequest(input=examples(None, 4.0, context=2.0)), "regress")
    assert [r.value for r in stub.Regress(request, timeout=20).result.regressions] == [3.0, 4.0]


def test_classify(stub):
    request = spec_of(classification_pb2.ClassificationRequest(input=examples(1.0)), "classify")
    (found,) = stub.Classify(request, timeout=20).result.classifications
    assert [(c.label, c.score) for c in found.classes] == [("low", -1.0), ("high", 2.5)]


@pytest.mark.parametrize(
    ("signature", "given", "text"),
    [
        ("classify", Input(), "Input is empty."),
        ("nope", examples(1.0), "No signature was found with the name: nope"),
        ("pair", examples(1.0), "Expected one input Tensor."),
    ],
)  # fmt: skip
def test_classify_refusals(stub, signature, given, text):
    request = spec_of(classification_pb2.ClassificationRequest(input=given), signature)
    assert refusal(stub.Classify, request) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize(
    ("call", "signature", "text"),
    [
        ("Classify", "", "No classification inputs found in SignatureDef: inputs {\n  key: \"x\"\n"),
        ("Classify", "regress", 'Expected classification signature outputs to contain at least one of "classes" or '
         '"scores". Signature was: inputs {\n'),
        ("Regress", "", "No regression inputs found in SignatureDef: inputs {\n"),
        ("Regress", "classify", "Expected one output Tensor."),
    ],
)  # fmt: skip
def test_a_signature_of_another_kind_is_shown(stub, call, signature, text):
    kind = {"Classify": classification_pb2.ClassificationRequest, "Regress": regression_pb2.RegressionRequest}[call]
    code, said = refusal(getattr(stub, call), spec_of(kind(input=examples(1.0)), signature))
    assert code == "INVALID_ARGUMENT" and said.startswith(text)


def test_method_names_count_only_when_they_are_checked(half, tmp_path):
    """TensorFlow 2 names the method of every signature predict."""
    path = add_version(tmp_path / "native", 1, half)
    edit(path, lambda graph: setattr(graph.signature_def["regress"], "method_name", PREDICT))
    edit(path, lambda graph: setattr(graph.signature_def["pair"], "method_name", "another"))
    request = spec_of(regression_pb2.RegressionRequest(input=examples(4.0)), "regress")
    sums = predict_request("half", "pair", a=[[1]], b=[[2]])
    native, strict = Servable(path), Servable(path, check_methods=True)
    assert run_regress(native, 1, request).result.regressions[0].value == 4.0
    assert PredictResponse.FromString(run_predict(native, 1, sums)).outputs["sum"].float_val[0] == 3.0
    with pytest.raises(RequestError, match=rf"regression signature method_name to be {REGRESS}. Was: {PREDICT}"):
        run_regress(strict, 1, request)
    with pytest.raises(RequestError, match=r"method_name to be one of .* Was: another"):
        run_predict(strict, 1, sums)
    native.close()
    strict.close()


def test_examples_without_the_feature_are_the_graphs_refusal(stub):
    request = spec_of(regression_pb2.RegressionRequest(input=examples(None)), "regress")
    code, text = refusal(stub.Regress, request)
    assert code == "INVALID_ARGUMENT" and "Feature: x" in text


def multi(*tasks):
    request = inference_pb2.MultiInferenceRequest(input=examples(4.0))
    for model, signature, method in tasks:
        spec_of(request.tasks.add(method_name=method), signature, model)
    return request


def test_multi_inference_runs_both(stub):
    request = multi(("half", "joint_regress", REGRESS), ("half", "joint_classify", CLASSIFY))
    regress, classify = stub.MultiInference(request, timeout=20).results
    assert [r.value for r in regress.regression_result.regressions] == [4.0]
    assert (regress.model_spec.name, regress.model_spec.signature_name) == ("half", "joint_regress")
    (found,) = classify.classification_result.classifications
    assert [(c.label, c.score) for c in found.classes] == [("low", -4.0), ("high", 4.0)]


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("half", "regress", REGRESS)] * 2, "INVALID_ARGUMENT", "Duplicate evaluation of signature: regress"),
        ([("half", "regress", REGRESS), ("x", "classify", CLASSIFY)], "INVALID_ARGUMENT",
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([("half", "x", REGRESS)], "INVALID_ARGUMENT", "Requested signature not found in model graph: x"),
        ([("half", "regress", "predict")], "UNIMPLEMENTED", "Unsupported signature method_name: predict"),
        ([("half", "regress", REGRESS), ("half", "classify", CLASSIFY)], "INVALID_ARGUMENT",
         "Input tensor must be the same for all Signatures."),
    ],
)  # fmt: skip
def test_multi_inference_refusals(stub, tasks, code, text):
    assert refusal(stub.MultiInference, multi(*tasks)) == (code, text)


def test_metadata(stub):
    request = spec_of(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]))
    answer = stub.GetModelMetadata(request, timeout=20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == tf.float32.as_datatype_enum
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("half", 3)
    no_field = spec_of(get_model_metadata_pb2.GetModelMetadataRequest())
    text = "GetModelMetadataRequest must specify at least one metadata_field"
    assert refusal(stub.GetModelMetadata, no_field) == ("INVALID_ARGUMENT", text)
    missing = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert refusal(stub.GetModelMetadata, missing) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_health(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    assert check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
    assert refusal(check, health_pb2.HealthCheckRequest(service="x"))[0] == "NOT_FOUND"


def test_a_deadline_that_has_passed_reaches_the_client(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(predict_request("half", "loop", n=np.array([30_000], np.int32)), timeout=0.001)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_only_model_config_lists_are_reloaded(channel):
    code, text = refusal(ModelServiceStub(channel).HandleReloadConfigRequest, ReloadConfigRequest())
    assert code == "INVALID_ARGUMENT" and text.endswith("Only ModelConfigList is currently supported")


def test_a_model_config_list_is_reloaded(half, tmp_path):
    add_version(tmp_path / "other", 7, half)
    manager = Manager(Loading(retries=0))
    server, port = start(manager, "127.0.0.1", 0, 2)
    request = ReloadConfigRequest()
    models = request.config.model_config_list.config
    models.add(name="other", base_path=str(tmp_path / "other"), model_platform="tensorflow")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reload, predict = ModelServiceStub(channel).HandleReloadConfigRequest, PredictionServiceStub(channel).Predict
        assert reload(request, timeout=60).status.error_code == 0
        assert predict(predict_request("other", x=[2]), timeout=20).model_spec.version.value == 7
        models[0].version_labels["stable"] = 7
        reload(request, timeout=60)
        labelled = predict_request("other", x=[2])
        labelled.model_spec.version_label = "stable"
        assert list(predict(labelled, timeout=20).outputs["y"].float_val) == [3.0]
        models[0].version_labels["stable"] = 8
        code, text = refusal(reload, request)
    assert code == "FAILED_PRECONDITION" and text.startswith("Request to assign label to version 8 of model other")
    server.stop(None).wait()
    manager.close()
