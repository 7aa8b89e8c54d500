"""The Hugging Face task API: text and image classification, translation with its stream, explanations."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from service.errors import HeedError, InvalidRequest
from service.prediction.messages import (
    AttentionSelector,
    Classification,
    Explained,
    ExplainRequest,
    Receipt,
    RequestOptions,
    Translated,
)
from service.tasks.hub_messages import (
    HUB_TOP_K,
    ExplainParameters,
    ImageClassificationParameters,
    ImageClassificationRequest,
    TextClassificationRequest,
    TranslationRequest,
    is_json,
    labelled_scores,
    texts_and_field,
    translation_text,
)
from service.tensors import bytes_array
from service.transport.http import open_inference_json as rest
from service.transport.http.endpoint import Endpoint, run_while_connected
from service.transport.http.json_bounds import read_bounded_json
from service.transport.http.responses import json_response, receipt_headers, server_sent_event
from service.transport.status import internal_error_text

log = structlog.get_logger(__name__)

TaskHandler = Callable[[Request, str, bytes], Awaitable[Response]]  # from a request, its id and its body
TranslationPiece = str | tuple[Translated, Receipt]  # the next piece of text, or the whole at the end


class TaskApi:
    """Handlers of the Hugging Face task API."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._predictor = endpoint, endpoint.predictor
        self._handlers: dict[str, TaskHandler] = {
            "text-classification": self._classify_texts,
            "image-classification": self._classify_image,
            "translation": self._translate,
        }

    def routes(self) -> list[Route]:
        """Return the API's only route."""
        return [self._endpoint.inference_route("/models/{model}", self._answer)]

    async def _answer(self, request: Request, request_id: str) -> Response:
        body = await self._endpoint.read_body(request, request_id)
        task = self._predictor.task_of(request.path_params["model"])
        # For a model without a task, the predictor's error to a text says what the model does not offer.
        handler = self._handlers.get(task, self._classify_texts)
        return await handler(request, request_id, body)

    async def _classify_texts(self, request: Request, request_id: str, body: bytes) -> Response:
        read = partial(read_bounded_json, body, TextClassificationRequest)
        message = await self._endpoint.decode_inline_or_in_thread(read, len(body))
        texts, field = texts_and_field(message.inputs)
        options = self._endpoint.request_options(request, request_id, None, message.parameters.truncation)
        function, top_k = message.parameters.function_to_apply or "softmax", message.parameters.top_k
        if (explain := message.parameters.explain) is not None:
            inputs = {"text": bytes_array([text.encode() for text in texts])}
            explaining = self._predictor.explain(options, inputs, _explain_request(explain), field, function, top_k)
            return await _explained_response(request, options, explaining)
        answer = self._predictor.classify_texts(options, texts, field=field, function=function, top_k=top_k)
        classifications, receipt = await run_while_connected(request, answer)
        num_scores = sum(len(classification.scores) for classification in classifications)
        encode = partial(_encode_classifications, classifications)
        encoded = await self._endpoint.decode_inline_or_in_thread(encode, num_scores)
        return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")

    async def _classify_image(self, request: Request, request_id: str, body: bytes) -> Response:
        image, field, parameters = body, "the body", ImageClassificationParameters()
        if is_json(body):
            # Nearly all of the JSON is one string, the file in base64, which is cheap to decode.
            read = partial(read_bounded_json, body, ImageClassificationRequest, self._endpoint.config.max_body_bytes)
            message = await self._endpoint.decode_inline_or_in_thread(read, len(body))
            image, field, parameters = message.inputs.encode(), "inputs", message.parameters
        options = self._endpoint.request_options(request, request_id, None, truncate=False)
        function, top_k = parameters.function_to_apply or "softmax", parameters.top_k or HUB_TOP_K
        if (explain := parameters.explain) is not None:
            inputs = {"image": bytes_array([image])}
            explaining = self._predictor.explain(options, inputs, _explain_request(explain), field, function, top_k)
            return await _explained_response(request, options, explaining)
        answer = self._predictor.classify_images(options, [image], field=field, function=function, top_k=top_k)
        (classification,), receipt = await run_while_connected(request, answer)
        document = labelled_scores(classification.labels, classification.scores)
        return json_response(document, headers=receipt_headers(receipt))

    async def _translate(self, request: Request, request_id: str, body: bytes) -> Response:
        read = partial(read_bounded_json, body, TranslationRequest)
        message = await self._endpoint.decode_inline_or_in_thread(read, len(body))
        parameters = message.parameters
        search = parameters.search()
        self._predictor.check_languages(request.path_params["model"], parameters.src_lang, parameters.tgt_lang)
        options = self._endpoint.request_options(request, request_id, None, parameters.truncate, search)
        texts, field = texts_and_field(message.inputs)
        if message.stream:
            if not isinstance(message.inputs, str):
                raise InvalidRequest("inputs must be one text where stream is true")
            if parameters.explain is not None:
                raise InvalidRequest("explain is not offered where stream is true: what is explained is the whole")
            pieces = self._predictor.stream_translation(options, texts[0], "inputs")
            return await _stream_response(request, request_id, pieces)
        if (explain := parameters.explain) is not None:
            inputs = {"text": bytes_array([text.encode() for text in texts])}
            explaining = self._predictor.explain(options, inputs, _explain_request(explain), field)
            return await _explained_response(request, options, explaining)
        answer = self._predictor.translate_texts(options, texts, field)
        translations, receipt = await run_while_connected(request, answer)
        document = [translation_text(translated.text) for translated in translations]
        return json_response(document, headers=receipt_headers(receipt))


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
        document = translation_text(translated.text) | {"score": translated.score}
        document |= {"num_tokens": translated.num_tokens, "num_beams": 1, "receipt": receipt.as_dict()}
        yield server_sent_event(document)
    except HeedError as error:
        yield server_sent_event({"error": str(error)})
    except Exception:
        log.exception("unexpected error", request_id=request_id, path=path)
        yield server_sent_event({"error": internal_error_text(request_id)})
    finally:
        await pieces.aclose()


async def _explained_response(
    request: Request, options: RequestOptions, explaining: Awaitable[tuple[Explained, Receipt]]
) -> Response:
    """Respond with the task's usual answer and its explanation beside it."""
    (answer, explanation), receipt = await run_while_connected(request, explaining)
    document: object
    if isinstance(answer, Translated):
        document = [translation_text(answer.text)]
    else:
        scores = labelled_scores(answer.labels, answer.scores)
        document = scores if explanation.patches else [scores]
    explained = rest.explain_response(options.model, options.request_id, explanation, receipt)
    return json_response({"answer": document, "explanation": explained}, headers=receipt_headers(receipt))


def _explain_request(parameters: ExplainParameters) -> ExplainRequest:
    """Translate the task API's parameters of an explanation into the predictor's."""
    selector = AttentionSelector(parameters.part, parameters.layer, parameters.head)
    return ExplainRequest(parameters.method, parameters.target, parameters.n_samples, parameters.seed, selector)


def _encode_classifications(classifications: Sequence[Classification]) -> bytes:
    """Encode the classes of several texts as JSON, text by text, so that no call of the encoder takes long."""
    rows = [
        msgspec.json.encode(labelled_scores(classification.labels, classification.scores))
        for classification in classifications
    ]
    return b"".join((b"[", b",".join(rows), b"]"))
