"""A client of any TensorFlow Serving that serves a recommender: gRPC or REST, blocking or asyncio, no TensorFlow."""

from tfrec.client.aio import AsyncClient
from tfrec.client.attempts import CallError, Retry
from tfrec.client.blocking import Client, query
from tfrec.client.calls import BatchedForm
from tfrec.client.results import ModelInfo, Result, Signature, TensorInfo, VersionStatus
from tfrec.client.tls import Tls

__all__ = [
    "AsyncClient",
    "BatchedForm",
    "CallError",
    "Client",
    "ModelInfo",
    "Result",
    "Retry",
    "Signature",
    "TensorInfo",
    "Tls",
    "VersionStatus",
    "query",
]
