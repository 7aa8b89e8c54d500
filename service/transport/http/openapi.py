"""Build the OpenAPI document of the HTTP server, for /openapi.json and the page /docs."""

from typing import Any, Literal

import msgspec

from service.tasks.table import TASKS
from service.transport.extension_documents import ModelConfig, RepositoryEntry, Statistics
from service.transport.http import open_inference_json as rest
from service.transport.http.compatible.openapi_paths import KINDS, compatible_paths
from service.transport.http.model_administration import IndexRequest
from service.transport.request_metadata import REQUEST_ID_HEADER, TIMEOUT_HEADER

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
    """The body of every error response."""

    error: str


class ServerMetadata(msgspec.Struct):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    """An input or output of a model; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """Tensors and versions of a model; property `explain` lists the explanation methods that it supports."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class IndexEntry(msgspec.Struct):
    """An entry of the model index.

    `version` answers requests that name no version; `versions` are ready. `explain` lists the explanation methods that
    the model supports. `batching` says whether requests share engine calls, and why: proved, declared, or the obstacle.
    """

    name: str
    version: str
    versions: list[str]
    task: str | None
    labels: list[str]
    explain: list[str]
    ready: bool
    reason: str | None
    precision: str | None
    cache: Literal["host", "device"] | None
    batching: str | None


class ModelIndex(msgspec.Struct):
    """All models of the store; `grpc_port` is null if the server was started with gRPC port 0, any free one."""

    models: list[IndexEntry]
    grpc_port: int | None


class Live(msgspec.Struct):
    """Liveness of the process."""

    live: bool


class Ready(msgspec.Struct):
    """Readiness of the server; `reason` says why it is not ready."""

    ready: bool
    reason: str | None


class ModelReady(msgspec.Struct):
    """Readiness of a model; `reason` says why it is not ready."""

    name: str
    ready: bool
    reason: str | None


class ServerReady(msgspec.Struct):
    """Readiness of the server; `not_served` gives a reason for each model that is not served."""

    ready: bool
    reason: str | None
    not_served: dict[str, str]


# Media type of an image file as the whole body of a request; the server takes it under any other type, too.
FILE = "application/octet-stream"
ANSWER = "The answer."
EXPLAIN = (
    "How much each part of one input adds to the answer; parameters: method (occlusion, lime, shap; of models whose"
    " metadata name them attention and gradients), target, n_samples, seed; of attention part, layer and head"
)
HEADERS = [
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Deadline of the answer in milliseconds.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31},
    },
    {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "description": "Id of the request: returned with the answer, and logged.",
        "schema": {"type": "string"},
    },
]


def openapi_document(version: str, models: list[str]) -> dict[str, Any]:
    """Build the document.

    Args:
        version: the server's version.
        models: names of the ready models, listed as examples of the path parameter.
    """
    kinds: list[Any] = [rest.InferRequest, rest.InferResponse, rest.ExplainResponse, ErrorBody]
    kinds += [ServerMetadata, ModelMetadata, ModelIndex, Live, Ready, ModelReady, ServerReady]
    kinds += [ModelConfig, Statistics, RepositoryEntry, IndexRequest, *KINDS]
    kinds += dict.fromkeys(kind for task in TASKS.values() for kind in (task.hub_request, task.hub_answer))
    refs, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    _adapt_to_generators(components)
    schema = dict(zip(kinds, refs, strict=True))
    examples = {"examples": models} if models else {}
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", **examples}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Heed",
            "version": version,
            "description": "Open Inference Protocol v2 over REST (with binary tensor data), and the Hugging Face task"
            " API; Text Embeddings Inference and OpenAI's embeddings. The same models answer over gRPC.",
        },
        "paths": _server_paths(schema)
        | _task_paths(schema, model)
        | _protocol_paths(schema, model)
        | compatible_paths(schema, HEADERS),
        "components": {"schemas": components},
    }


def _adapt_to_generators(schema: Any) -> None:
    """Change a schema in place so that generators of clients understand it.

    Without `items`, openapi-python-client leaves out an array and every operation that has it. Without
    `additionalProperties`, openapi-typescript takes an object to be empty. Both misread defaults: the first refuses
    arrays and objects, and the second requires the properties that have one. Of other spellings that the server takes
    (capitals, integers with a point), the schema has one only: two of a name cannot both be members of an enumeration.
    """
    if isinstance(schema, dict):
        if schema.get("type") == "array":
            schema.setdefault("items", {})
        if schema.get("type") == "object" and "properties" not in schema:
            schema.setdefault("additionalProperties", True)
        schema.pop("default", None)
        if "enum" in schema:
            names = schema["enum"]
            schema["enum"] = [each for each in names if each == each.lower() or each.lower() not in names]
        if any(each.get("type") == "integer" for each in schema.get("anyOf", ())):
            schema["anyOf"] = [each for each in schema["anyOf"] if each.get("type") != "number"]
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _adapt_to_generators(part)


def _server_paths(schema: dict[Any, Any]) -> dict[str, Any]:
    """Build the paths of health, readiness, metrics and server metadata."""
    live, ready = "Liveness of the process", "Readiness of the server"
    statistics = _answers(schema, Statistics)
    metrics = {"200": {"description": "In the text format, or OpenMetrics where that is accepted."}}
    return {
        "/healthz": _get("healthz", live, _answers(schema, Live)),
        "/readyz": _get("readyz", ready, _answers(schema, ServerReady) | _not_ready(schema, ServerReady)),
        "/metrics": _get("metrics", "Prometheus metrics", metrics),
        "/v2": _get("serverMetadata", "Server metadata", _answers(schema, ServerMetadata)),
        "/v2/models": _get("listModels", "The models of the store", _answers(schema, ModelIndex)),
        "/v2/models/stats": _get("allStatistics", "Statistics of all models, in Triton's form", statistics),
        "/v2/repository/index": _index(schema),
        "/v2/health/live": _get("serverLive", live, _answers(schema, Live)),
        "/v2/health/ready": _get("serverReady", ready, _answers(schema, Ready) | _not_ready(schema, Ready)),
    }


def _task_paths(schema: dict[Any, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Build the path of the Hugging Face task API."""
    answers = [
        {"type": "array", "items": schema[task.hub_answer]} if task.answers_lists else schema[task.hub_answer]
        for task in TASKS.values()
    ]
    usual = [answer for number, answer in enumerate(answers) if answer not in answers[:number]]
    # The response if the parameters contain `explain`.
    explained = {
        "type": "object",
        "properties": {"answer": {"anyOf": usual}, "explanation": schema[rest.ExplainResponse]},
        "required": ["answer", "explanation"],
    }
    answer = _json(ANSWER, {"anyOf": [*usual, explained]})
    # The response to a translation request with "stream": true.
    answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    operation = _post(
        "answer",
        f"Hugging Face task API: {', '.join(name.replace('-', ' ') for name in TASKS)}",
        {"anyOf": [schema[task.hub_request] for task in TASKS.values()]},
        {"200": answer} | _errors(schema, *ERRORS),
        takes_files=True,
    )
    return {"/models/{model}": {"parameters": [model], **operation}}


def _protocol_paths(schema: dict[Any, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Build the Open Inference Protocol's paths of a model, with and without a version."""
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    ready_answers = _answers(schema, ModelReady) | _errors(schema, 404) | _not_ready(schema, ModelReady)
    text = {"description": ANSWER, "content": {"text/markdown": {"schema": {"type": "string"}}}}
    infer_answers = _answers(schema, rest.InferResponse) | _errors(schema, *ERRORS)
    explain_answers = _answers(schema, rest.ExplainResponse) | _errors(schema, *ERRORS)
    config, statistics = _answers(schema, ModelConfig), _answers(schema, Statistics)
    not_found = _errors(schema, 404, 503)
    paths: dict[str, Any] = {}
    for prefix, suffix, parameters in (
        ("/v2/models/{model}", "", [model]),
        ("/v2/models/{model}/versions/{version}", "OfVersion", [model, version]),
    ):
        operations = {
            "": _get("modelMetadata" + suffix, "Model metadata", _answers(schema, ModelMetadata) | not_found),
            "/config": _get("modelConfig" + suffix, "Model configuration, in Triton's form", config | not_found),
            "/stats": _get("modelStatistics" + suffix, "Statistics, in Triton's form", statistics | not_found),
            "/card": _get("modelCard" + suffix, "Model card", {"200": text} | not_found),
            "/ready": _get("modelReady" + suffix, "Readiness of one model", ready_answers),
            "/infer": _post("infer" + suffix, "Inference", schema[rest.InferRequest], infer_answers),
            "/explain": _post("explain" + suffix, EXPLAIN, schema[rest.InferRequest], explain_answers),
        }
        for path, operation in operations.items():
            paths[prefix + path] = {"parameters": parameters, **operation}
    return paths


def _index(schema: dict[Any, Any]) -> dict[str, Any]:
    """Build the operation that lists the model versions of the store."""
    answer = {"200": _json(ANSWER, {"type": "array", "items": schema[RepositoryEntry]})}
    request = {"required": False, "content": {"application/json": {"schema": schema[IndexRequest]}}}
    responses = answer | _errors(schema, 400, 413, 429, 504)
    operation = {"operationId": "repositoryIndex", "summary": "Index of the store, in Triton's form"}
    return {"post": operation | {"requestBody": request, "responses": responses}}


def _get(operation_id: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"operationId": operation_id, "summary": summary, "responses": responses}}


def _post(
    operation_id: str, summary: str, body: Any, responses: dict[str, Any], *, takes_files: bool = False
) -> dict[str, Any]:
    content = {"application/json": {"schema": body}}
    if takes_files:
        content[FILE] = {"schema": {"type": "string", "format": "binary"}}
    request = {"required": True, "content": content}
    operation = {"operationId": operation_id, "summary": summary, "parameters": HEADERS}
    return {"post": operation | {"requestBody": request, "responses": responses}}


def _answers(schema: dict[Any, Any], kind: type) -> dict[str, Any]:
    return {"200": _json(ANSWER, schema[kind])}


def _not_ready(schema: dict[Any, Any], kind: type) -> dict[str, Any]:
    return {"503": _json("Not now.", schema[kind])}


def _errors(schema: dict[Any, Any], *codes: int) -> dict[str, Any]:
    return {str(code): _json(ERRORS[code], schema[ErrorBody]) for code in codes}


def _json(text: str, body: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": body}}}
