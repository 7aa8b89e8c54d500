"""The Hugging Face task API: one route, whose requests and answers have the form of the model's task."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from service.errors import HeedError
from service.prediction.messages import AttentionSelector, Explained, ExplainRequest, Receipt, RequestOptions
from service.prediction.validation import described
from service.tasks.hub_messages import ExplainParameters, is_json, stream_end, whole
from service.tasks.stored_task import HubCall, StoredTask
from service.tasks.translation import Translated
from service.transport.http import open_inference_json as rest
from service.transport.http.endpoint import Endpoint, run_while_connected
from service.transport.http.json_bounds import MAX_JSON_BYTES, read_bounded_json
from service.transport.http.responses import json_response, receipt_headers, server_sent_event
from service.transport.status import internal_error_text

log = structlog.get_logger(__name__)

TranslationPiece = str | tuple[Translated, Receipt]  # the next piece of text, or the whole at the end


class TaskApi:
    """Handler of the Hugging Face task API."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._predictor = endpoint, endpoint.predictor

    def routes(self) -> list[Route]:
        """Return the API's only route."""
        return [self._endpoint.inference_route("/models/{model}", self._answer)]

    async def _answer(self, request: Request, request_id: str) -> Response:
        body = await self._endpoint.read_body(request, request_id)
        model = request.path_params["model"]
        task = self._predictor.catalog.hub_task(model)
        call = await self._read(task, body, f"model {model!r} is {described(task)}")
        options = self._endpoint.request_options(request, request_id, None, call.truncate, call)
        if call.stream:
            pieces = self._predictor.stream_translation(options, call.inputs[0], call.field)
            return await _stream_response(request, request_id, pieces)
        if call.explain is not None:
            asked = _explain_request(call.explain)
            explaining = self._predictor.explain(options, call.inputs, asked, call.field, call.answer)
            return await _explained_response(request, task, options, explaining)
        answering = self._predictor.answer(options, type(task), call.inputs, call.field, call.answer)
        answers, receipt = await run_while_connected(request, answering)
        if call.document is not None:
            encoded = msgspec.json.encode(call.document(answers))
            return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")
        num_scores = len(answers) * min(call.answer.top_k or MAX_JSON_BYTES, max(1, len(task.labels)))
        encode = partial(_encode_answers, task, answers)
        encoded = await self._endpoint.decode_inline_or_in_thread(encode, num_scores)
        return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")

    async def _read(self, task: StoredTask[Any], body: bytes, whose: str) -> HubCall:
        """Read the body of a request: JSON, or a file where the task takes files."""
        max_bytes = MAX_JSON_BYTES
        if task.takes_files:
            if not is_json(body):
                return task.read_hub(body)
            # Nearly all of the JSON is one string, the file in base64, which is cheap to decode.
            max_bytes = self._endpoint.config.max_body_bytes
        read = partial(read_bounded_json, body, task.hub_request, max_bytes, whose)
        return task.read_hub(await self._endpoint.decode_inline_or_in_thread(read, len(body)))


async def _stream_response(
    request: Request, request_id: str, pieces: AsyncGenerator[TranslationPiece, None]
) -> Response:
    """Respond with server-sent events: each piece of a translation, then the whole with its receipt."""
    # The first piece is awaited before the response begins, so that an error still sets the status.
    first = await run_while_connected(request, anext(pieces))
    events = _translation_events(first, pieces, request_id, request.url.path)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _translation_events(
    piece: TranslationPiece, pieces: AsyncGenerator[TranslationPiece, None], request_id: str, path: str
) -> AsyncIterator[bytes]:
    """Encode a translation's pieces as server-sent events; Starlette stops iterating when the client hangs up."""
    try:
        while isinstance(piece, str):
            yield server_sent_event({"text": piece})
            piece = await anext(pieces)
        translated, receipt = piece
        end = stream_end(translated.text, translated.score, translated.num_tokens)
        yield server_sent_event(end | {"receipt": receipt.as_dict()})
    except HeedError as error:
        yield server_sent_event({"error": str(error)})
    except Exception:
        log.exception("unexpected error", request_id=request_id, path=path)
        yield server_sent_event({"error": internal_error_text(request_id)})
    finally:
        await pieces.aclose()


async def _explained_response(
    request: Request,
    task: StoredTask[Any],
    options: RequestOptions,
    explaining: Awaitable[tuple[Explained, Receipt]],
) -> Response:
    """Respond with the task's usual answer and its explanation beside it."""
    (answer, explanation), receipt = await run_while_connected(request, explaining)
    document = task.hub_document(answer)
    explained = rest.explain_response(options.model, options.request_id, explanation, receipt)
    return json_response(
        {"answer": [document] if task.answers_lists else document, "explanation": explained},
        headers=receipt_headers(receipt),
    )


def _explain_request(parameters: ExplainParameters) -> ExplainRequest:
    """Translate the task API's parameters of an explanation into the predictor's."""
    layer, head = whole("layer", parameters.layer), whole("head", parameters.head)
    selector = AttentionSelector(parameters.part, layer, head)
    samples, seed = whole("n_samples", parameters.n_samples), whole("seed", parameters.seed)
    return ExplainRequest(parameters.method, parameters.target, samples, seed, selector)


def _encode_answers(task: StoredTask[Any], answers: Sequence[Any]) -> bytes:
    """Encode answers as JSON, one by one, so that no call of the encoder takes long."""
    encoded = [msgspec.json.encode(task.hub_document(answer)) for answer in answers]
    return b"".join((b"[", b",".join(encoded), b"]")) if task.answers_lists else encoded[0]
