"""The standard gRPC service for reflection, in its two versions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from service.errors import DeadlineExceeded, HeedError, TooLarge
from service.transport.grpc import descriptors
from service.transport.grpc.endpoint import Context, FramedService, abort
from service.transport.grpc.messages import MAX_CONTROL_BYTES
from service.transport.status import STATUS_OF

SERVICES = (
    descriptors.INFERENCE_NAME,
    descriptors.HEED_NAME,
    descriptors.HEALTH_NAME,
    descriptors.REFLECTION_V1_NAME,
    descriptors.REFLECTION_V1ALPHA_NAME,
)


class ReflectionService(FramedService):
    """grpc.reflection.v1 and v1alpha: the library's answers, with the limits on receiving that all calls have.

    The messages of both versions have the same bytes. A stream ends when its client sends no request within the time
    for one message, or when the server shuts down.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library = reflection.aio.ReflectionServicer(SERVICES, pool=descriptors.POOL)

    async def ServerReflectionInfo(self, _: Any, context: Context) -> None:
        """Answer a stream of questions about the services and their messages."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a call always is one
        try:
            while (message := await self._receive(context, task)) is not None:
                if len(message) > MAX_CONTROL_BYTES:
                    text = f"the message has {len(message)} bytes, the limit of this call is {MAX_CONTROL_BYTES}"
                    raise TooLarge(text)
                request = reflection_pb2.ServerReflectionRequest.FromString(message)
                async for reply in self._library.ServerReflectionInfo(_only(_by_service(request)), context):
                    reply.original_request.CopyFrom(request)
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


def add_reflection_to_server(servicer: ReflectionService, server: Any) -> None:
    """Register both versions; the generated code has v1alpha alone."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    call: Any = grpc.stream_stream_rpc_method_handler(servicer.ServerReflectionInfo)
    server.add_registered_method_handlers(descriptors.REFLECTION_V1_NAME, {"ServerReflectionInfo": call})


def _by_service(request: Any) -> Any:
    """Return the request with the service in place of one of its methods, or as it is.

    The protocol lets a client ask for the file of a method (`grpcurl describe package.Service.Method`); the library
    looks for messages, enumerations and services only.
    """
    service, _, method = request.file_containing_symbol.rpartition(".")
    try:
        descriptors.POOL.FindServiceByName(service).methods_by_name[method]
    except KeyError:
        return request
    return reflection_pb2.ServerReflectionRequest(host=request.host, file_containing_symbol=service)


async def _only(request: Any) -> AsyncIterator[Any]:
    """Yield one request as a stream."""
    yield request
