"""Inputs that a server must refuse, with the error that must come."""

from collections.abc import Mapping

from load_tests.model_tasks import ModelTask
from load_tests.soak.servers import MAX_BODY_BYTES
from load_tests.wire import Request, infer_path, json_tensor, refused_grpc, refused_http, v2_body, v2_message


def bad_requests(models: Mapping[str, ModelTask]) -> list[Request]:
    """Return bad requests over both protocols: some for any model, and those of each task.

    Args:
        models: names of models, each of another task.
    """
    model, text = next(iter(models)), json_tensor("text", ["x"])
    ragged = json_tensor("x", [[1.0, 2.0], [3.0]], "FP32", [2, 16])
    requests = [
        refused_http("unknown model", infer_path("nope"), v2_body(text), "NOT_FOUND"),
        refused_http("unknown path", "/v3", b"{}", "NOT_FOUND"),
        refused_http("not JSON", infer_path(model), b'{"inputs": [}'),
        refused_http("not UTF-8", infer_path(model), b'{"inputs": "\xff"}'),
        refused_http("no inputs", infer_path(model), b"{}"),
        refused_http("unknown input", infer_path(model), v2_body(json_tensor("txt", ["x"]))),
        refused_http("ragged numbers", infer_path("soak-double"), v2_body(ragged)),
        refused_http("body too large", f"/models/{model}", b" " * (MAX_BODY_BYTES + 1), "RESOURCE_EXHAUSTED"),
        refused_grpc("unknown model", v2_message("nope", "text", ["x"], raw=True), "NOT_FOUND"),
        refused_grpc("unknown input", v2_message(model, "txt", ["x"], raw=True)),
        refused_grpc(
            "message too large", v2_message(model, "text", [b"x" * MAX_BODY_BYTES], raw=True), "RESOURCE_EXHAUSTED"
        ),
    ]
    return requests + [bad for name, task in models.items() for bad in task.bad_requests(name)]
