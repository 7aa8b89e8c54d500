"""The gRPC server: listens, limits connections, registers the services, and stops within a time limit."""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import grpc
import structlog

from proto import heed_pb2_grpc, inference_pb2_grpc
from service.config import ServiceConfig, address_of
from service.prediction.predictor import Predictor
from service.process.memory_budget import ByteBudget
from service.process.thread_priority import renice_threads_named
from service.transport.grpc.accept import Handlers, keep_calls_outstanding, take_all_calls
from service.transport.grpc.endpoint import Activity
from service.transport.grpc.health import HealthService, add_health_to_server
from service.transport.grpc.receiving import MessageReceiver
from service.transport.grpc.reflection import ReflectionService, add_reflection_to_server
from service.transport.grpc.services import HeedService
from service.transport.grpc.streaming import StreamingInferenceService
from service.transport.request_metadata import RequestIds
from service.transport.turns import Turns

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

# gRPC's thread that delivers events to the event loop. On a busy core it would interrupt the loop for each message;
# with a lower priority it delivers several at once, which saves 5 to 9 % (docs/decisions/transport.md).
POLLER_THREAD, POLLER_NICENESS = "(_poll_wrapper)", 5
# Threads of gRPC's core, which read and write the sockets. If clients send very much, these threads would take most of
# a busy core.
CORE_THREADS, CORE_NICENESS = "event_engine", 15
# Size of a call's metadata: above the first limit gRPC refuses a random part of calls, above the second all.
MAX_METADATA_BYTES, ABSOLUTE_MAX_METADATA_BYTES = 8 * 2**10, 16 * 2**10
# Time for a new connection to complete the HTTP/2 handshake.
HANDSHAKE_TIMEOUT_S = 10.0
# Time after which a connection without calls is closed; gRPC closes it gracefully, so that no call is lost.
MAX_CONNECTION_IDLE_S = 600.0
# Time for clients to read their answers after the last call is answered; then connections are cut.
UNREAD_ANSWERS_S = 2.0
# Time for messages to arrive after a shutdown has begun.
LATE_MESSAGES_S = 2.0
LOOK_INTERVAL_S = 0.05


class GrpcServer:
    """The running gRPC server and the activity of its calls.

    Attributes:
        port: port that the server listens on.
    """

    def __init__(
        self, server: grpc.aio.Server, port: int, handlers: Handlers, receiver: MessageReceiver, activity: Activity
    ) -> None:
        self.port = port
        self._server, self._handlers, self._receiver, self._activity = server, handlers, receiver, activity

    async def stop(self, timeout_s: float) -> None:
        """Accept no more connections or calls, and return when the last call has ended or the time is up.

        Calls in computation have the whole time. Clients that have not sent their message have `LATE_MESSAGES_S`, and
        clients that do not read their answer have `UNREAD_ANSWERS_S`.
        """
        stop_at_s = time.monotonic() + timeout_s
        self._receiver.stop(min(LATE_MESSAGES_S, timeout_s))
        await take_all_calls(self._server, self._handlers.all)
        stopping = asyncio.create_task(self._server.stop(timeout_s))
        unread_since_s, writes = time.monotonic(), self._activity.writes
        while not stopping.done():
            now_s = time.monotonic()
            if self._activity.working > 0 or self._receiver.num_receiving > 0 or self._activity.writes != writes:
                unread_since_s, writes = now_s, self._activity.writes
            if now_s >= min(stop_at_s, unread_since_s + UNREAD_ANSWERS_S):
                # Two coroutines that await the termination crash the process (grpcio 1.81,
                # docs/decisions/transport.md).
                stopping.cancel()
                await asyncio.wait([stopping])
                await self._server.stop(None)
                return
            await asyncio.wait([stopping], timeout=LOOK_INTERVAL_S)
        await stopping


async def start_grpc(
    predictor: Predictor,
    config: ServiceConfig,
    bodies: ByteBudget,
    turns: Turns,
    tracing: "Tracing | None" = None,
) -> GrpcServer:
    """Start the gRPC server with all services.

    Args:
        predictor: answers requests.
        config: the server's options.
        bodies: memory budget for requests and answers, shared with the HTTP server.
        turns: queue for long steps, shared with the HTTP server.
        tracing: records a span for each inference request; None turns tracing off.

    Raises:
        RuntimeError: the port is taken.
    """
    receiver = MessageReceiver(bodies, config.max_body_bytes, config.grpc_message_timeout_s)
    handlers, activity, request_ids = Handlers(), Activity(), RequestIds()
    infer_service = partial(StreamingInferenceService, raw_outputs=config.triton_compatible == "on")
    for service, add_to_server in (
        (infer_service, inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server),
        (HeedService, heed_pb2_grpc.add_HeedServicer_to_server),
        (HealthService, add_health_to_server),
        (ReflectionService, add_reflection_to_server),
    ):
        service(predictor, receiver, turns, activity, request_ids, tracing).register(add_to_server, handlers)
    server, port = await listen(handlers, config)
    return GrpcServer(server, port, handlers, receiver, activity)


async def listen(
    handlers: Handlers, config: ServiceConfig, version: str = grpc.__version__
) -> tuple[grpc.aio.Server, int]:
    """Start a gRPC server with the service's settings, for any call handlers.

    Args:
        handlers: the server's call handlers.
        config: the server's options.
        version: version of grpcio.

    Returns:
        The server and its port.

    Raises:
        RuntimeError: the port is taken.
    """
    server = grpc.aio.server(options=channel_options(config))
    server.add_generic_rpc_handlers(tuple(handlers.all))
    address = address_of(config.host, config.grpc_port)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:  # gRPC's text names variables of its core, so it is replaced
        raise RuntimeError(f"gRPC cannot listen on {address}: it is in use, or no address of this machine") from None
    await server.start()
    if not keep_calls_outstanding(server, handlers.all, version=version):
        log.warning("calls are taken one at a time: this version of grpcio was not tested", grpcio=version)
    await asyncio.gather(
        renice_threads_named(POLLER_THREAD, by=POLLER_NICENESS),
        renice_threads_named(CORE_THREADS, by=CORE_NICENESS),
    )
    return server, port


def channel_options(config: ServiceConfig) -> list[tuple[str, int]]:
    """Return gRPC's channel options: limits on connections, metadata, messages and streams."""
    options = [
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        # With port reuse, two servers on one port would silently share the requests.
        ("grpc.so_reuseport", 0),
        # No compression: gRPC checks the size limit after decompression, and gzip expands data up to a thousandfold.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Without a limit, a client that opens and resets streams makes the server allocate a gigabyte in a second.
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # Otherwise flow control lets clients send megabytes before a call asks for its message.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", ABSOLUTE_MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", round(1e3 * HANDSHAKE_TIMEOUT_S)),
        ("grpc.max_connection_idle_ms", round(1e3 * MAX_CONNECTION_IDLE_S)),
    ]
    if config.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", round(1e3 * config.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", round(1e3 * config.drain_timeout_s)),
        ]
    return options
