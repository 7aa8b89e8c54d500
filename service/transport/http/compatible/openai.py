"""OpenAI's embeddings API, for its clients (https://platform.openai.com/docs/api-reference/embeddings)."""

import binascii
import time
from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import HeedError, NotFound
from service.tasks.hub_messages import whole
from service.tasks.task import EmbeddingOptions
from service.tasks.text.embeddings import FeatureExtraction
from service.transport.float_json import NUMBERS_PER_ELEMENT, json_rows
from service.transport.http.compatible import openai_messages as openai
from service.transport.http.compatible.inputs import ModelChoice, Purpose, texts_or_ids
from service.transport.http.endpoint import Endpoint, run_while_connected
from service.transport.http.json_bounds import read_bounded_json
from service.transport.http.responses import json_response, receipt_headers

EMBEDS = Purpose((FeatureExtraction,))
LITTLE_ENDIAN = np.dtype("<f4")


def openai_error(kind: type[HeedError], status: int, text: str) -> Response:
    """Build the response of an error in OpenAI's form."""
    return json_response(openai.error_body(kind, text), status)


class OpenAiEmbeddings:
    """Handlers of /v1/embeddings and /v1/models."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._predictor, self._catalog = endpoint, endpoint.predictor, endpoint.predictor.catalog
        self._choice, self._started_s = ModelChoice(self._catalog), int(time.time())

    def routes(self) -> list[Route]:
        """Return the API's routes."""
        return [
            self._endpoint.inference_route("/v1/embeddings", self._embed, openai_error),
            self._endpoint.route("/v1/models", self._models, error_form=openai_error),
            self._endpoint.route("/v1/models/{model}", self._model, error_form=openai_error),
        ]

    async def _embed(self, request: Request, request_id: str) -> Response:
        body = await self._endpoint.read_body(request, request_id)
        read = partial(read_bounded_json, body, openai.EmbeddingsRequest)
        message = await self._endpoint.decode_inline_or_in_thread(read, len(body))
        task = self._choice.task_of(request, message.model, EMBEDS)
        inputs, field = texts_or_ids(message.input, "input")
        asked = EmbeddingOptions(message.normalize, whole("dimensions", message.dimensions), message.prompt_name)
        call = task.call(inputs, field, asked, truncate=bool(message.truncate))
        options = self._endpoint.request_options(request, request_id, None, call.truncate, call)
        answering = self._predictor.answer_together(options, type(task), call.inputs, call.field, call.rows_of)
        array_nD, num_tokens, receipt = await run_while_connected(request, answering)
        is_base64 = message.encoding_format == "base64"
        encode = partial(embeddings_json, array_nD, options.model, num_tokens, is_base64=is_base64)
        encoded = await self._endpoint.decode_inline_or_in_thread(encode, array_nD.size // NUMBERS_PER_ELEMENT)
        return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")

    async def _models(self, request: Request, request_id: str) -> Response:
        names = self._catalog.models_whose(EMBEDS.fits)
        return json_response(openai.EmbeddingModels("list", [self._described(name) for name in names]))

    async def _model(self, request: Request, request_id: str) -> Response:
        name, names = request.path_params["model"], self._catalog.models_whose(EMBEDS.fits)
        if name not in names:
            raise NotFound(f"no model {name!r} embeds texts; these do: {', '.join(names) or 'none'}")
        return json_response(self._described(name))

    def _described(self, name: str) -> openai.EmbeddingModel:
        return openai.EmbeddingModel(name, "model", self._started_s, "heed")


def embeddings_json(vectors_nD: NDArray[np.float32], model: str, num_tokens: int, *, is_base64: bool) -> bytes:
    """Write vectors as an `EmbeddingsResponse`.

    Args:
        vectors_nD: float32 [n, D].
        model: name of the model.
        num_tokens: tokens of all inputs.
        is_base64: write the bytes of each vector as base64 instead of numbers.
    """
    rows: Sequence[bytes | memoryview]
    if is_base64:
        before, after = b'"', b'"}'
        rows = [binascii.b2a_base64(row, newline=False) for row in np.ascontiguousarray(vectors_nD, LITTLE_ENDIAN)]
    else:
        rows, before, after = json_rows(vectors_nD), b"[", b"]}"
    pieces: list[bytes | memoryview] = [b'{"object":"list","data":[']
    for number, row in enumerate(rows):
        separator = b"," if number else b""
        pieces += [separator, b'{"object":"embedding","index":%d,"embedding":' % number, before, row, after]
    usage = msgspec.json.encode(openai.Usage(num_tokens, num_tokens))
    return b"".join([*pieces, b'],"model":', msgspec.json.encode(model), b',"usage":', usage, b"}"])
