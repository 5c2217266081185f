"""Classify, Regress and MultiInference: tf.Examples in, classes and values out.

Reference: tensorflow_serving/servables/tensorflow/{classifier,regressor,multi_inference,util}.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow_serving.apis.classification_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
    ClassificationResult,
)
from tensorflow_serving.apis.inference_pb2 import InferenceTask, MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse, RegressionResult

from tfrec.server.predict import fill_spec
from tfrec.server.servable import CLASSIFY, DEFAULT_SIGNATURE, REGRESS, Servable, Signature
from tfrec.server.status import RequestError, invalid
from tfrec.server.tensors import dtype_of

_INPUTS, _OUTPUTS, _CLASSES, _SCORES = "inputs", "outputs", "classes", "scores"
_NAMES = {CLASSIFY: "classification", REGRESS: "regression"}


def run_classify(
    servable: Servable, version: int | None, request: ClassificationRequest, deadline: float | None = None
) -> ClassificationResponse:
    """Answers a ClassificationRequest.

    Raises:
        RequestError: the signature does not classify, the input is empty, or the graph refuses it.
    """
    response = ClassificationResponse()
    _answer(servable, version, request, response, CLASSIFY, deadline)
    return response


def run_regress(
    servable: Servable, version: int | None, request: RegressionRequest, deadline: float | None = None
) -> RegressionResponse:
    """Answers a RegressionRequest.

    Raises:
        RequestError: the signature does not regress, the input is empty, or the graph refuses it.
    """
    response = RegressionResponse()
    _answer(servable, version, request, response, REGRESS, deadline)
    return response


def run_multi_inference(
    servable: Servable, version: int | None, request: MultiInferenceRequest, deadline: float | None = None
) -> MultiInferenceResponse:
    """Answers several tasks on the same examples by one run of the graph.

    Raises:
        RequestError: the tasks do not go together, the input is empty, or the graph refuses it.
    """
    tasks = _checked_tasks(servable, request.tasks)
    tensors = {_input_tensor(signature, task.method_name) for task, signature in tasks}
    if len(tensors) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    fetches = sorted({tensor for task, signature in tasks for tensor in _FETCHES[task.method_name](signature)})
    values, count = _run(servable, next(iter(tensors), ""), fetches, request.input, deadline)
    response = MultiInferenceResponse()
    for task, signature in tasks:
        result = response.results.add()
        fill_spec(result.model_spec, task.model_spec, version)
        filled = getattr(result, f"{_NAMES[task.method_name]}_result")
        filled.SetInParent()
        _FILL[task.method_name](filled, signature, values, count)
    return response


def serialized_examples(given: Input) -> np.ndarray:
    """The examples as serialized tf.Examples, each with the context in front.

    Raises:
        RequestError: there is none.
    """
    kind = given.WhichOneof("kind")
    examples = [example.SerializeToString() for example in getattr(given, kind).examples] if kind else []
    if not examples:
        raise invalid("Input is empty.")
    context = given.example_list_with_context.context.SerializeToString() if kind.endswith("context") else b""
    serialized = np.empty(len(examples), object)
    serialized[:] = [context + example for example in examples]  # joined messages are a merged message
    return serialized


def count_examples(given: Input) -> int:
    """How many examples a request has."""
    kind = given.WhichOneof("kind")
    return len(getattr(given, kind).examples) if kind else 0


def _answer(
    servable: Servable, version: int | None, request: Any, response: Any, method: str, deadline: float | None
) -> None:
    signature = _signature(servable, request.model_spec.signature_name, method)
    tensor, fetches = _input_tensor(signature, method), _FETCHES[method](signature)
    values, count = _run(servable, tensor, fetches, request.input, deadline)
    fill_spec(response.model_spec, request.model_spec, version)
    _FILL[method](response.result, signature, values, count)


def _signature(servable: Servable, name: str, method: str) -> Signature:
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return _of_method(servable.signatures[name], method)


def _of_method(signature: Signature, method: str) -> Signature:
    if signature.method != method:
        raise invalid(f"Expected {_NAMES[method]} signature method_name to be {method}. Was: {signature.method}")
    return signature


def _checked_tasks(servable: Servable, tasks: Sequence[InferenceTask]) -> list[tuple[InferenceTask, Signature]]:
    checked: dict[str, tuple[InferenceTask, Signature]] = {}
    for task in tasks:
        spec, name = task.model_spec, task.model_spec.signature_name or DEFAULT_SIGNATURE
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if spec.name != tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in checked:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _NAMES:
            raise RequestError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        checked[name] = task, _of_method(servable.signatures[name], task.method_name)
    return list(checked.values())


def _input_tensor(signature: Signature, method: str) -> str:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if method == CLASSIFY and len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if method == REGRESS and len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if _INPUTS not in signature.inputs:
        raise RequestError(
            "FAILED_PRECONDITION", f"No {_NAMES[method]} inputs found in SignatureDef: {list(signature.inputs)}"
        )
    return signature.inputs[_INPUTS].tensor


def _classes(signature: Signature) -> list[str]:
    found = [signature.outputs[alias].tensor for alias in (_CLASSES, _SCORES) if alias in signature.outputs]
    if not found:
        raise RequestError(
            "FAILED_PRECONDITION",
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {list(signature.outputs)}",
        )
    return found


def _value(signature: Signature) -> list[str]:
    if _OUTPUTS not in signature.outputs:
        raise RequestError(
            "FAILED_PRECONDITION", f"No regression outputs found in SignatureDef: {list(signature.outputs)}"
        )
    return [signature.outputs[_OUTPUTS].tensor]


def _run(
    servable: Servable, tensor: str, fetches: Sequence[str], given: Input, deadline: float | None
) -> tuple[dict[str, np.ndarray], int]:
    examples = serialized_examples(given)
    values = servable.session.run({tensor: examples}, fetches, deadline)
    return dict(zip(fetches, values, strict=True)), len(examples)


def _fill_classes(
    result: ClassificationResult, signature: Signature, values: Mapping[str, np.ndarray], count: int
) -> None:
    found = {a: values[signature.outputs[a].tensor] for a in (_CLASSES, _SCORES) if a in signature.outputs}
    for alias, kind in ((_CLASSES, DataType.DT_STRING), (_SCORES, DataType.DT_FLOAT)):
        if alias in found:
            _check_classes(alias, found[alias], kind, count)
    if len({value.shape[1] for value in found.values()}) > 1:
        widths = " vs. ".join(str(found[alias].shape[1]) for alias in (_CLASSES, _SCORES))
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {widths}")
    rows = {alias: value.tolist() for alias, value in found.items()}
    for i in range(count):
        classes = result.classifications.add().classes
        for c in range(next(iter(found.values())).shape[1]):
            made = classes.add()
            if _CLASSES in rows:
                made.label = rows[_CLASSES][i][c].decode("utf-8", "replace")
            if _SCORES in rows:
                made.score = rows[_SCORES][i][c]


def _check_classes(alias: str, value: np.ndarray, dtype: int, count: int) -> None:
    if value.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}")
    if dtype_of(value).as_datatype_enum != dtype:
        raise invalid(f"Expected {alias} Tensor of {DataType.Name(dtype)}. Got: {_dtype(value)}")
    if len(value) != count:
        raise invalid(f"Expected {alias} output batch size of {count}. Got: {len(value)}")


def _fill_values(result: RegressionResult, signature: Signature, values: Mapping[str, Any], count: int) -> None:
    value = values[signature.outputs[_OUTPUTS].tensor]
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(value)}"
        )
    if len(value) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(value)}")
    if dtype_of(value).as_datatype_enum != DataType.DT_FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(value)}")
    for number in value.ravel().tolist():
        result.regressions.add().value = number


def _shape(value: np.ndarray) -> str:
    return "[" + ",".join(str(size) for size in value.shape) + "]"


def _dtype(value: np.ndarray) -> str:
    return DataType.Name(dtype_of(value).as_datatype_enum)


_FETCHES: Mapping[str, Callable[[Signature], list[str]]] = {CLASSIFY: _classes, REGRESS: _value}
_FILL: Mapping[str, Callable[[Any, Signature, Mapping[str, Any], int], None]] = {
    CLASSIFY: _fill_classes,
    REGRESS: _fill_values,
}
