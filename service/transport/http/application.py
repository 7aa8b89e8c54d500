"""The HTTP server's routes: each face is a module, and one line in `build_application`."""

import socket
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from service.config import ServiceConfig
from service.prediction.predictor import Predictor
from service.process.memory_budget import ByteBudget
from service.telemetry.metrics import Metrics
from service.transport.http.connection import ConnectionLimits
from service.transport.http.endpoint import Endpoint
from service.transport.http.open_inference import OpenInference
from service.transport.http.operators import Operators
from service.transport.http.server import HttpServer
from service.transport.http.task_api import TaskApi
from service.transport.turns import Turns

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing


def build_http(
    predictor: Predictor,
    metrics: Metrics,
    config: ServiceConfig,
    request_memory: ByteBudget,
    turns: Turns,
    tracing: "Tracing | None" = None,
) -> tuple[HttpServer, socket.socket]:
    """Build the HTTP server, and bind the socket that it will listen on, so that its port is known.

    Args:
        predictor: answers requests.
        metrics: exposed at /metrics.
        config: the server's options.
        request_memory: memory budget for requests and responses, shared with the gRPC server.
        turns: queue for long steps, shared with the gRPC server.
        tracing: records a span for each inference request; None turns tracing off.

    Returns:
        the server, and its bound socket.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.http_port), family=family, backlog=2048)
    limits = ConnectionLimits(config.max_connections, config.client_timeout_s, request_memory, turns)
    application = build_application(Endpoint(predictor, config, turns, tracing), metrics)
    return HttpServer(application, limits), listener


def build_application(endpoint: Endpoint, metrics: Metrics) -> Starlette:
    """Build the application with the routes of every face, those with the most requests first.

    Args:
        endpoint: what all calls share.
        metrics: exposed at /metrics.
    """
    faces = (
        OpenInference(endpoint),
        TaskApi(endpoint),
        Operators(endpoint, metrics),
    )
    routes = [route for face in faces for route in face.routes()]
    return Starlette(routes=routes, exception_handlers={HTTPException: endpoint.no_such_route})
