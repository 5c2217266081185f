"""TensorFlow Serving's calls, apart from the wire: gRPC and REST both end here."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from tfrec.server.examples import count_examples, run_classify, run_multi_inference, run_regress
from tfrec.server.manager import Manager
from tfrec.server.metrics import Metrics
from tfrec.server.predict import run_predict
from tfrec.server.status import RequestError, invalid
from tfrec.server.tensors import packed

SIGNATURE_DEF = "signature_def"
Deadline = float | None


class Api:
    """The calls of PredictionService and ModelService.

    Args:
        manager: holds the models.
        metrics: counts the calls.
        content: whether Predict answers with tensor_content.
    """

    def __init__(self, manager: Manager, metrics: Metrics | None = None, content: bool = False):
        self.manager, self.metrics = manager, metrics or Metrics()
        self._run_predict = functools.partial(run_predict, encode=packed) if content else run_predict

    def predict(self, request: PredictRequest, deadline: Deadline = None) -> bytes:
        """See run_predict; NOT_FOUND when there is no such model."""
        answer: bytes = self._run(self._run_predict, request, deadline)
        return answer

    def classify(self, request: ClassificationRequest, deadline: Deadline = None) -> ClassificationResponse:
        """See run_classify; NOT_FOUND when there is no such model."""
        response = self._run(run_classify, request, deadline)
        self._count_examples(request.model_spec, count_examples(request.input))
        return response

    def regress(self, request: RegressionRequest, deadline: Deadline = None) -> RegressionResponse:
        """See run_regress; NOT_FOUND when there is no such model."""
        return self._run(run_regress, request, deadline)

    def multi_inference(self, request: MultiInferenceRequest, deadline: Deadline = None) -> MultiInferenceResponse:
        """See run_multi_inference; NOT_FOUND when there is no such model."""
        spec = request.tasks[0].model_spec if request.tasks else ModelSpec()
        with self.manager.using(spec) as (servable, version):
            response = run_multi_inference(servable, version.number, request, deadline)
        self._count_examples(spec, count_examples(request.input))
        return response

    def metadata(self, request: GetModelMetadataRequest) -> GetModelMetadataResponse:
        """The signatures of a model.

        Raises:
            RequestError: another field is asked for, or there is no such model.
        """
        _require_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid("Metadata field %s is not supported" + field)  # TensorFlow Serving's own slip
        response = GetModelMetadataResponse()
        with self.manager.using(request.model_spec) as (servable, version):
            response.model_spec.name, response.model_spec.version.value = version.name, version.number
            response.metadata[SIGNATURE_DEF].Pack(servable.signature_defs)
        return response

    def status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """The states of one or all versions of a model.

        Raises:
            RequestError: there is none.
        """
        _require_spec(request)
        spec = request.model_spec  # a label is ignored, as TensorFlow Serving does
        number = spec.version.value if spec.HasField("version") else None
        states = [version.proto() for version in self.manager.states(spec.name, number)]
        return GetModelStatusResponse(model_version_status=states)

    def reload(self, request: ReloadConfigRequest, waiting: Callable[[], bool]) -> ReloadConfigResponse:
        """Serves another model config list.

        Raises:
            RequestError: it is refused, or a new model cannot be loaded.
        """
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        self.manager.reload(request.config, waiting)
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response

    def measured(self, model: str, name: str, entry: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a call, counting it and how long it took."""
        started, status = time.perf_counter(), "OK"
        try:
            answer = call(*arguments)
            self.metrics.latency.add((time.perf_counter() - started) * 1e6, model, name, entry)
            return answer
        except RequestError as error:
            status = error.code
            raise
        finally:
            # Requests for models that do not exist share a label, so that strangers cannot fill the memory.
            self.metrics.requests.add(model if self.manager.knows(model) else "", status)

    def _run(self, run: Callable[..., Any], request: Any, deadline: Deadline) -> Any:
        _require_spec(request)
        version, servable = self.manager.acquire(request.model_spec)
        try:
            return run(servable, version.number, request, deadline)
        finally:
            version.release()

    def _count_examples(self, spec: ModelSpec, count: int) -> None:
        self.metrics.example_counts.add(count, spec.name)
        self.metrics.example_total.add(spec.name, by=count)


def _require_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
