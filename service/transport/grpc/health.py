"""The standard gRPC service for health checks."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.errors import NotFound
from service.transport.grpc import descriptors
from service.transport.grpc.endpoint import Context, FramedService

WATCH_INTERVAL_S = 1.0
SERVICES = (descriptors.INFERENCE_NAME, descriptors.HEED_NAME)


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

    async def List(self, request: Any, context: Context, request_id: str) -> Any:
        """Return the status of the server, of its services and of each model of the store."""
        names = ["", *SERVICES, *dict.fromkeys(version.name for version in self._predictor.catalog.versions())]
        response = descriptors.HealthListResponse()
        for name in names:
            response.statuses[name].status = self._status(name)
        return response

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


def add_health_to_server(servicer: HealthService, server: Any) -> None:
    """Register the calls; the generated code has no `List` (see `descriptors`)."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    parse = descriptors.HealthListRequest.FromString
    call: Any = grpc.unary_unary_rpc_method_handler(servicer.List, request_deserializer=parse)
    server.add_registered_method_handlers(descriptors.HEALTH_NAME, {"List": call})
