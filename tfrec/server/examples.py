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
_ALIASES = {CLASSIFY: (_CLASSES, _SCORES), REGRESS: (_OUTPUTS,)}


def run_classify(
    servable: Servable, version: int | None, request: ClassificationRequest, deadline: float | None = None
) -> ClassificationResponse:
    """Answers a ClassificationRequest.

    Raises:
        RequestError: the signature cannot classify, the input is empty, or the graph refuses it.
    """
    response = ClassificationResponse()
    _answer(servable, version, request, response, CLASSIFY, deadline)
    return response


def run_regress(
    servable: Servable, version: int | None, request: RegressionRequest, deadline: float | None = None
) -> RegressionResponse:
    """Answers a RegressionRequest.

    Raises:
        RequestError: the signature cannot regress, the input is empty, or the graph refuses it.
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
    fetches = sorted({tensor for _, _, outputs in tasks for tensor in outputs})
    tensor = tasks[0][1].inputs[_INPUTS].tensor if tasks else ""
    values, count = _run(servable, tensor, fetches, request.input, deadline)
    response = MultiInferenceResponse()
    for task, signature, _ in tasks:
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
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    fetches = _fetches(servable, name, method)
    signature = servable.signatures[name]
    values, count = _run(servable, signature.inputs[_INPUTS].tensor, fetches, request.input, deadline)
    fill_spec(response.model_spec, request.model_spec, version)
    _FILL[method](response.result, signature, values, count)


def _checked_tasks(
    servable: Servable, tasks: Sequence[InferenceTask]
) -> list[tuple[InferenceTask, Signature, list[str]]]:
    """Tasks with their signatures and the tensors that they fetch."""
    checked: dict[str, tuple[InferenceTask, Signature, list[str]]] = {}
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
        checked[name] = task, servable.signatures[name], _fetches(servable, name, task.method_name)
        if len({signature.inputs[_INPUTS].tensor for _, signature, _ in checked.values()}) > 1:
            raise invalid("Input tensor must be the same for all Signatures.")
    return list(checked.values())


def _fetches(servable: Servable, name: str, method: str) -> list[str]:
    """The tensors that a call fetches of a signature, once that is known to fit the call."""
    signature, kind = servable.signatures[name], _NAMES[method]
    if servable.check_methods and signature.method != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if method == CLASSIFY and len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if method == REGRESS and len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    text = str(servable.signature_defs.signature_def[name])
    if _INPUTS not in signature.inputs:
        raise invalid(f"No {kind} inputs found in SignatureDef: {text}")
    fetches = [signature.outputs[alias].tensor for alias in _ALIASES[method] if alias in signature.outputs]
    if not fetches and method == CLASSIFY:
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {text}"
        )
    if not fetches:
        raise invalid(f"No regression outputs found in SignatureDef: {text}")
    return fetches


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


_FILL: Mapping[str, Callable[[Any, Signature, Mapping[str, Any], int], None]] = {
    CLASSIFY: _fill_classes,
    REGRESS: _fill_values,
}
