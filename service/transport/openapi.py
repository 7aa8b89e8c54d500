"""The OpenAPI description of the HTTP face, as /openapi.json and for the page /docs."""

from collections.abc import Sequence
from typing import Any

import msgspec

from service.transport import rest
from service.transport.frame import REQUEST_ID_HEADER, TIMEOUT_HEADER

ERRORS = {
    400: "The request is wrong; the text names the field and the limit.",
    404: "No such model or version.",
    413: "The body is larger than the limit.",
    429: "The queue is full; Retry-After says when to try again.",
    499: "The client hung up.",
    500: "The model failed on this input, or an internal error.",
    501: "Known to the protocol, not offered here.",
    503: "The model or the server cannot answer now.",
    504: "The deadline passed, or cannot be met.",
}


class ErrorBody(msgspec.Struct):
    """Every error."""

    error: str


class ServerMetadata(msgspec.Struct):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    """One input or output of a model; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """Tensors and versions of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(msgspec.Struct):
    """The process lives."""

    live: bool


class Ready(msgspec.Struct):
    """Whether requests would be answered correctly now, and if not, why."""

    ready: bool
    reason: str | None


class ModelReady(msgspec.Struct):
    """The same of one model."""

    name: str
    ready: bool
    reason: str | None


class ServerReady(msgspec.Struct):
    """The same of the server, with every model that is not served."""

    ready: bool
    reason: str | None
    not_served: dict[str, str]


class TranslatedText(msgspec.Struct):
    """A translation."""

    translation_text: str


class LabelScore(msgspec.Struct):
    """A class and its score."""

    label: str
    score: float


# Media types of the files that image models take, as a body of their own.
IMAGE_FILES = ("image/jpeg", "image/png", "image/webp")


def openapi_document(
    version: str, models: list[str], text_request: type, image_request: type, translation_request: type
) -> dict[str, Any]:
    """The document, with the models that are ready as examples of the path parameter."""
    kinds = [
        *(
            rest.InferRequest,
            rest.InferResponse,
            ErrorBody,
            ServerMetadata,
            ModelMetadata,
        ),
        *(Live, Ready, ModelReady, ServerReady, text_request, image_request, translation_request),
        *(LabelScore, TranslatedText),
    ]
    refs, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema = dict(zip(kinds, refs, strict=True))
    model_parameter = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", **({"examples": models} if models else {})},
    }
    version_parameter = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
    }
    headers = [
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "description": "Milliseconds the answer is wanted in.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 2**31},
        },
        {
            "name": REQUEST_ID_HEADER,
            "in": "header",
            "description": "Comes back in the answer, and stands in the server's log.",
            "schema": {"type": "string"},
        },
    ]

    def answers(kind: Any, *errors: int, also: dict[int, Any] | None = None) -> dict[str, Any]:
        found = {"200": _json("The answer.", kind)}
        found |= {str(code): _json(text, body) for code, (text, body) in (also or {}).items()}
        return found | {str(code): _json(ERRORS[code], schema[ErrorBody]) for code in errors}

    def get(summary: str, kind: Any, *errors: int, also: dict[int, Any] | None = None) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": answers(kind, *errors, also=also)}}

    def post(summary: str, body: Any, kind: Any, files: Sequence[str] = ()) -> dict[str, Any]:
        content = {"application/json": {"schema": body}}
        content |= {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in files}
        operation = {
            "summary": summary,
            "parameters": headers,
            "requestBody": {"required": True, "content": content},
            "responses": answers(kind, *ERRORS),
        }
        return {"post": operation}

    not_ready = "Not now."
    scores = {"type": "array", "items": schema[LabelScore]}
    translations = {"type": "array", "items": schema[TranslatedText]}
    paths: dict[str, Any] = {
        "/healthz": get("The process lives", schema[Live]),
        "/readyz": get(
            "The server would answer correctly now",
            schema[ServerReady],
            also={503: (not_ready, schema[ServerReady])},
        ),
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {"200": {"description": "In the text format, or OpenMetrics where that is accepted."}},
            }
        },
        "/v2": get("Server metadata", schema[ServerMetadata]),
        "/v2/health/live": get("The process lives", schema[Live]),
        "/v2/health/ready": get(
            "The server would answer correctly now",
            schema[Ready],
            also={503: (not_ready, schema[Ready])},
        ),
        "/models/{model}": {
            "parameters": [model_parameter],
            **post(
                "Hugging Face task API: text classification, image classification, translation",
                {"anyOf": [schema[text_request], schema[image_request], schema[translation_request]]},
                {"anyOf": [{"type": "array", "items": scores}, scores, translations]},
                IMAGE_FILES,
            ),
        },
    }
    # A translation request with "stream": true is answered so.
    answered = paths["/models/{model}"]["post"]["responses"]["200"]["content"]
    answered["text/event-stream"] = {"schema": {"type": "string"}}
    for prefix, parameters in (
        ("/v2/models/{model}", [model_parameter]),
        ("/v2/models/{model}/versions/{version}", [model_parameter, version_parameter]),
    ):
        metadata = get("Model metadata", schema[ModelMetadata], 404, 503)
        ready = get("One model would answer correctly now", schema[ModelReady], 404)
        ready["get"]["responses"]["503"] = _json(not_ready, schema[ModelReady])
        infer = post("Inference", schema[rest.InferRequest], schema[rest.InferResponse])
        paths[prefix] = {"parameters": parameters, **metadata}
        paths[prefix + "/ready"] = {"parameters": parameters, **ready}
        paths[prefix + "/infer"] = {"parameters": parameters, **infer}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Heed",
            "version": version,
            "description": "Open Inference Protocol v2 over REST (with binary tensor data), and the Hugging Face task"
            " API. The same models answer over gRPC.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _json(text: str, body: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": body}}}
