"""The part of the OpenAPI document about the APIs of other servers; `openapi.py` in the room above has the rest."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from service.tasks.hub_messages import LabelScore
from service.transport.http.compatible import openai_messages as openai
from service.transport.http.compatible import tei_messages as tei

UNDER_MODELS = "The same path under /models/{model} asks that model."
TEI_FAILURES = (404, 408, 413, 422, 424, 429, 500, 503, 504)
OPENAI_FAILURES = (400, 404, 408, 413, 429, 500, 501, 503, 504)
# Messages by which the components of the document are named.
KINDS: tuple[Any, ...] = (
    tei.EmbedRequest,
    tei.PredictRequest,
    tei.RerankRequest,
    tei.SimilarityRequest,
    tei.TokenizeRequest,
    tei.DecodeRequest,
    tei.Rank,
    tei.SimpleToken,
    tei.Info,
    tei.TeiErrorBody,
    openai.EmbeddingsRequest,
    openai.EmbeddingsResponse,
    openai.EmbeddingModel,
    openai.EmbeddingModels,
    openai.OpenAiErrorBody,
    list[LabelScore],
)
NUMBERS = {"type": "array", "items": {"type": "number"}}


def compatible_paths(schema: Mapping[Any, Any], headers: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the paths.

    Args:
        schema: schemas by the messages of `KINDS`.
        headers: parameters of every request that is an inference.
    """

    def operation(
        name: str, summary: str, answer: Any, error: Any, failures: tuple[int, ...], request: Any = None
    ) -> dict[str, Any]:
        codes = {str(code): _json(HTTPStatus(code).phrase, schema[error]) for code in failures}
        document: dict[str, Any] = {"operationId": name, "summary": summary}
        if request is None:
            return {"get": document | {"responses": {"200": _json("The answer.", answer)} | codes}}
        body = {"required": True, "content": {"application/json": {"schema": schema[request]}}}
        return {
            "post": document
            | {"parameters": headers, "requestBody": body, "responses": {"200": _json("The answer.", answer)} | codes}
        }

    def tei_operation(name: str, summary: str, answer: Any, request: Any = None) -> dict[str, Any]:
        what = f"Text Embeddings Inference: {summary}. {UNDER_MODELS}"
        return operation(name, what, answer, tei.TeiErrorBody, TEI_FAILURES, request)

    def openai_operation(name: str, summary: str, answer: Any, request: Any = None) -> dict[str, Any]:
        return operation(name, f"OpenAI: {summary}", schema[answer], openai.OpenAiErrorBody, OPENAI_FAILURES, request)

    classes = schema[list[LabelScore]]
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    health = _json("Not now.", schema[tei.TeiErrorBody])
    return {
        "/embed": tei_operation("embed", "vectors", {"type": "array", "items": NUMBERS}, tei.EmbedRequest),
        "/predict": tei_operation(
            "predict", "scores", {"anyOf": [classes, {"type": "array", "items": classes}]}, tei.PredictRequest
        ),
        "/rerank": tei_operation("rerank", "texts by their scores", _list(schema[tei.Rank]), tei.RerankRequest),
        "/similarity": tei_operation("similarity", "similarities", NUMBERS, tei.SimilarityRequest),
        "/tokenize": tei_operation("tokenize", "tokens", _list(_list(schema[tei.SimpleToken])), tei.TokenizeRequest),
        "/decode": tei_operation("decode", "texts of ids", _list({"type": "string"}), tei.DecodeRequest),
        "/info": tei_operation("info", "the model and the limits", schema[tei.Info]),
        "/health": {
            "get": {
                "operationId": "health",
                "summary": "Text Embeddings Inference: readiness of the server",
                "responses": {"200": {"description": "Ready."}, "503": health},
            }
        },
        "/v1/embeddings": openai_operation(
            "createEmbeddings", "vectors", openai.EmbeddingsResponse, openai.EmbeddingsRequest
        ),
        "/v1/models": openai_operation("listEmbeddingModels", "models that embed texts", openai.EmbeddingModels),
        "/v1/models/{model}": {
            "parameters": [name],
            **openai_operation("embeddingModel", "a model that embeds texts", openai.EmbeddingModel),
        },
    }


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _json(text: str, body: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": body}}}
