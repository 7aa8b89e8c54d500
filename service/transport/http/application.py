"""The HTTP server's routes: each API is a module, and one line in `build_application`."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from service.telemetry.metrics import Metrics
from service.transport.http.compatible.openai import OpenAiEmbeddings
from service.transport.http.compatible.tei import TextEmbeddingsInference
from service.transport.http.endpoint import Endpoint
from service.transport.http.open_inference import OpenInference
from service.transport.http.operators import Operators
from service.transport.http.task_api import TaskApi


def build_application(endpoint: Endpoint, metrics: Metrics) -> Starlette:
    """Build the application with the routes of every API, those with the most requests first.

    Args:
        endpoint: the base of all calls.
        metrics: metrics exposed at /metrics.
    """
    apis = (
        OpenInference(endpoint),
        TaskApi(endpoint),
        OpenAiEmbeddings(endpoint),
        TextEmbeddingsInference(endpoint),
        Operators(endpoint, metrics),
    )
    routes = [route for api in apis for route in api.routes()]
    return Starlette(routes=routes, exception_handlers={HTTPException: endpoint.no_such_route})
