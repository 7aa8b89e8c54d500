"""The standard gRPC services for health checks and reflection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from proto import heed_pb2, inference_pb2
from service.errors import DeadlineExceeded, HeedError, NotFound, TooLarge
from service.transport.grpc.endpoint import Context, FramedService, abort
from service.transport.grpc.messages import MAX_CONTROL_BYTES
from service.transport.status import STATUS_OF

WATCH_INTERVAL_S = 1.0
SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    heed_pb2.DESCRIPTOR.services_by_name["Heed"].full_name,
)


class HealthService(FramedService):
    """grpc.health.v1: the whole server under "", each of its services, and each model under its name.

    This replaces the library's servicer, which reports only the last status pushed to it and drops every watcher of a
    service when one disconnects.
    """

    def _status(self, name: str) -> Any:
        """Return the present status of the server, a service or a model."""
        try:
            whole = name == "" or name in SERVICES
            problem = self._predictor.catalog.not_ready_because() if whole else self._predictor.catalog.problem_of(name)
        except NotFound:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.NOT_SERVING if problem else health_pb2.HealthCheckResponse.SERVING

    async def Check(self, request: Any, context: Context, request_id: str) -> Any:
        """Report whether the server or a model would answer now."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Context, request_id: str) -> None:
        """Send the status now and after each change, until the client leaves or the server shuts down."""
        told = None
        while True:
            last = self._predictor.catalog.draining  # read before the write: the drain may begin during it
            status = self._status(request.service)
            if status != told:
                await self._write(context, health_pb2.HealthCheckResponse(status=status))
                told = status
            if last:
                return
            # The status is polled, because it also depends on time: an engine call may not return.
            await self._wait(WATCH_INTERVAL_S)

    async def _wait(self, seconds: float) -> None:
        """Wait, counted as an idle call, so that a shutdown does not wait for this one."""
        self._activity.working -= 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._activity.working += 1


class ReflectionService(FramedService):
    """grpc.reflection.v1alpha: the library's answers, with the limits on receiving that all calls have.

    A stream ends when its client sends no request within the time for one message, or when the server shuts down.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library = reflection.aio.ReflectionServicer([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME])

    def _framed(self, name: str, handler: Any) -> Any:
        """Return the handler unwrapped, because it receives each message of its stream itself."""
        return handler._replace(request_deserializer=None, response_serializer=None)

    async def ServerReflectionInfo(self, _: Any, context: Context) -> None:
        """Answer a stream of questions about the services and their messages."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a call always is one
        try:
            while (message := await self._receive(context, task)) is not None:
                if len(message) > MAX_CONTROL_BYTES:
                    text = f"the message has {len(message)} bytes, the limit of this call is {MAX_CONTROL_BYTES}"
                    raise TooLarge(text)
                request = reflection_pb2.ServerReflectionRequest.FromString(message)
                async for reply in self._library.ServerReflectionInfo(_only(request), context):
                    async with asyncio.timeout(self._receiver.timeout_s):
                        await context.write(reply.SerializeToString())
        except DecodeError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a reflection request: {error}")
        except DeadlineExceeded:
            return  # idle
        except HeedError as error:
            await abort(context, STATUS_OF[type(error)].grpc, str(error))
        except TimeoutError:
            await abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the client does not read its answer")


async def _only(request: Any) -> AsyncIterator[Any]:
    """Yield one request as a stream."""
    yield request
