"""Triton's extensions over gRPC: configuration, statistics and index of models; and the calls that are refused."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar

import msgspec
from google.protobuf.json_format import ParseDict

from proto import inference_pb2
from service.errors import Unsupported
from service.transport import extension_documents as documents
from service.transport.grpc.endpoint import Context, FramedService

# Calls that are refused: their messages are not read.
REFUSED = (
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)


def _unread(message: bytes) -> bytes:
    """Return a message as it is: a call that is refused does not read it, whatever its size and its dialect."""
    return message


def _refused(why: str) -> Callable[..., Awaitable[Any]]:
    """Build a call that is refused."""

    async def refused_call(self: Any, request: bytes, context: Context, request_id: str) -> Any:
        documents.refuse(why)

    return refused_call


def _fields(document: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a document, for `ParseDict`."""
    fields: dict[str, Any] = msgspec.to_builtins(document)
    return fields


class ModelAdministration(FramedService):
    """The calls of Triton's extensions that describe models, and those that this server refuses by name."""

    refused_readers: ClassVar = dict.fromkeys(REFUSED, _unread)
    RepositoryModelLoad = RepositoryModelUnload = _refused(documents.STORE_DECIDES)
    SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refused(documents.NO_SHARED_MEMORY)
    CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refused(documents.NO_SHARED_MEMORY)
    TraceSetting = _refused(documents.NO_TRACE_SETTING)
    LogSettings = _refused(documents.NO_LOG_SETTINGS)

    async def ModelConfig(self, request: Any, context: Context, request_id: str) -> inference_pb2.ModelConfigResponse:
        """Return how a model is served."""
        configuration = self._predictor.catalog.configuration(request.name, request.version)
        fields = _fields(documents.config_document(configuration))
        return ParseDict({"config": fields}, inference_pb2.ModelConfigResponse())

    async def ModelStatistics(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.ModelStatisticsResponse:
        """Return the statistics of a model's versions, of one version, or of all models."""
        statistics = self._predictor.catalog.statistics(request.name, request.version)
        fields, response = _fields(documents.statistics_document(statistics)), inference_pb2.ModelStatisticsResponse()
        return await self._turns.in_thread(partial(ParseDict, fields, response))

    async def RepositoryIndex(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.RepositoryIndexResponse:
        """List the model versions of the store."""
        if request.repository_name:
            raise Unsupported(documents.ONE_REPOSITORY)
        entries = documents.index_document(self._predictor.catalog.versions(), ready_only=request.ready)
        fields, response = {"models": [_fields(entry) for entry in entries]}, inference_pb2.RepositoryIndexResponse()
        return await self._turns.in_thread(partial(ParseDict, fields, response))

    async def SystemSharedMemoryStatus(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.SystemSharedMemoryStatusResponse:
        """List the regions of shared memory: none."""
        documents.check_shared_memory_region(request.name)
        return inference_pb2.SystemSharedMemoryStatusResponse()

    async def CudaSharedMemoryStatus(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.CudaSharedMemoryStatusResponse:
        """List the regions of a GPU's shared memory: none."""
        documents.check_shared_memory_region(request.name)
        return inference_pb2.CudaSharedMemoryStatusResponse()
