"""The API of Text Embeddings Inference, for its clients (huggingface/text-embeddings-inference, docs/openapi.json).

That server has one model. Here a path at the root, such as /embed, asks the only model that fits, or the one that the
body names; under /models/{model} the same paths ask that model. Statuses and errors are those of that server.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import HeedError, InvalidRequest, Unsupported
from service.prediction.messages import AnswerOptions
from service.tasks.hub_messages import inputs_and_field, whole
from service.tasks.stored_task import HubCall
from service.tasks.task import EmbeddingOptions, ScoreFunction, check_num_rows
from service.tasks.text.classification import TextClassification
from service.tasks.text.embeddings import FeatureExtraction
from service.tasks.text.ranking import TextRanking
from service.tasks.text.tokenization import Pair
from service.transport.float_json import NUMBERS_PER_ELEMENT, json_of_rows
from service.transport.http.compatible import tei_messages as tei
from service.transport.http.compatible.inputs import ModelChoice, Purpose, texts_or_ids, texts_or_pairs
from service.transport.http.endpoint import Endpoint, run_while_connected
from service.transport.http.json_bounds import read_bounded_json
from service.transport.http.responses import json_response, receipt_headers
from service.version import installed_version

M = TypeVar("M")
Handle = Callable[[Request, str], Awaitable[Response]]
EMBEDS = Purpose((FeatureExtraction,))
CLASSIFIES = Purpose((TextClassification,))
RANKS = Purpose((TextRanking, TextClassification), num_labels=1)
READS_TEXTS = Purpose((FeatureExtraction, TextClassification, TextRanking))
UNOFFERED = {
    "embed_all": "the vectors of all tokens are not offered: a model answers with one vector for each text",
    "embed_sparse": "sparse vectors are not offered: a model answers with one dense vector for each text",
}


def tei_error(kind: type[HeedError], status: int, text: str) -> Response:
    """Build the response of an error in the form of Text Embeddings Inference."""
    own_status, error_type = tei.STATUS_OF.get(kind, (status, "Backend"))
    return json_response(tei.TeiErrorBody(text, error_type), own_status)


class TextEmbeddingsInference:
    """Handlers of the paths of Text Embeddings Inference."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._predictor, self._catalog = endpoint, endpoint.predictor, endpoint.predictor.catalog
        self._choice = ModelChoice(self._catalog)

    def routes(self) -> list[Route]:
        """Return the API's routes: each at the root and under the path of a model."""
        inference: dict[str, Handle] = {
            "embed": self._embed,
            "predict": self._predict,
            "rerank": self._rerank,
            "similarity": self._similarity,
        }
        others: dict[str, Handle] = {"tokenize": self._tokenize, "decode": self._decode}
        others |= {name: partial(_refuse, text) for name, text in UNOFFERED.items()}
        routes = []
        for prefix in ("/", "/models/{model}/"):
            for name, handler in inference.items():
                routes.append(self._endpoint.inference_route(prefix + name, handler, tei_error))
            for name, handler in others.items():
                routes.append(self._endpoint.route(prefix + name, handler, ["POST"], tei_error))
            routes.append(self._endpoint.route(prefix + "info", self._info, error_form=tei_error))
        return [*routes, self._endpoint.route("/health", self._health, error_form=tei_error)]

    async def _read(self, request: Request, request_id: str, kind: type[M]) -> M:
        body = await self._endpoint.read_body(request, request_id)
        return await self._endpoint.decode_inline_or_in_thread(partial(read_bounded_json, body, kind), len(body))

    async def _embed(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.EmbedRequest)
        task = self._choice.task_of(request, message.model, EMBEDS)
        inputs, field = texts_or_ids(message.inputs, "inputs")
        asked = EmbeddingOptions(message.normalize, whole("dimensions", message.dimensions), message.prompt_name)
        call = task.call(inputs, field, asked, truncate=_truncates(task, message))
        array_nD, receipt = await self._rows(request, request_id, task, call)
        encode = partial(json_of_rows, array_nD)
        encoded = await self._endpoint.decode_inline_or_in_thread(encode, array_nD.size // NUMBERS_PER_ELEMENT)
        return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")

    async def _similarity(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.SimilarityRequest)
        task = self._choice.task_of(request, message.model, EMBEDS)
        parameters, given = message.parameters or tei.SimilarityParameters(), message.inputs
        if not given.sentences:
            raise InvalidRequest("inputs.sentences is empty")
        asked = EmbeddingOptions(prompt_name=parameters.prompt_name)
        texts = [given.source_sentence, *given.sentences]
        call = task.call(texts, "sentence {}", asked, truncate=_truncates(task, parameters))
        array_nD, receipt = await self._rows(request, request_id, task, call)
        return json_response(task.similarities(array_nD), headers=receipt_headers(receipt))

    async def _rows(self, request: Request, request_id: str, task: Any, call: HubCall) -> tuple[Any, Any]:
        """Compute the vectors of a call, float32 [n, D]; return them with the receipt."""
        assert call.rows_of is not None
        options = self._endpoint.request_options(request, request_id, None, call.truncate, call)
        answering = self._predictor.answer_together(options, type(task), call.inputs, call.field, call.rows_of)
        array_nD, _, receipt = await run_while_connected(request, answering)
        return array_nD, receipt

    async def _predict(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.PredictRequest)
        task = self._choice.task_of(request, message.model, CLASSIFIES)
        inputs, field, is_list = texts_or_pairs(message.inputs, "inputs")
        function: ScoreFunction | None = "none" if message.raw_scores else None
        call = HubCall(inputs, field, truncate=_truncates(task, message), answer=AnswerOptions(function))
        answers, receipt = await self._answers(request, request_id, task, call)
        documents = [task.hub_document(answer) for answer in answers]
        encode = partial(msgspec.json.encode, documents if is_list else documents[0])
        encoded = await self._endpoint.decode_inline_or_in_thread(encode, len(documents) * len(task.labels))
        return Response(encoded, headers=receipt_headers(receipt), media_type="application/json")

    async def _rerank(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.RerankRequest)
        task = self._choice.task_of(request, message.model, RANKS)
        pairs = [Pair(message.query, text) for text in message.texts]
        function: ScoreFunction = "none" if message.raw_scores else "sigmoid"
        call = HubCall(pairs, "texts[{}]", truncate=_truncates(task, message), answer=AnswerOptions(function))
        answers, receipt = await self._answers(request, request_id, task, call)
        scores = [answer.score for answer in answers]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        texts = message.texts if message.return_text else [msgspec.UNSET] * len(scores)
        ranks = [tei.Rank(number, scores[number], texts[number]) for number in order]
        return json_response(ranks, headers=receipt_headers(receipt))

    async def _answers(self, request: Request, request_id: str, task: Any, call: HubCall) -> tuple[list[Any], Any]:
        """Compute the answer to each input; return them with the receipt."""
        options = self._endpoint.request_options(request, request_id, None, call.truncate, call)
        answering = self._predictor.answer(options, type(task), call.inputs, call.field, call.answer)
        answers, receipt = await run_while_connected(request, answering)
        return answers, receipt

    async def _tokenize(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.TokenizeRequest)
        task = self._choice.task_of(request, message.model, READS_TEXTS)
        texts, field = inputs_and_field(message.inputs)
        check_num_rows(len(texts), self._endpoint.config.max_request_rows)
        if message.prompt_name is not None:
            if not EMBEDS.fits(task):
                raise InvalidRequest(f"prompt_name is {message.prompt_name!r}; the model has no prompts")
            texts = task.with_prompt(texts, message.prompt_name)
        for number, text in enumerate(texts):
            task.encoder.check_length(text, field.format(number))

        def encode() -> bytes:
            found = [task.encoder.tokens(text, special=message.add_special_tokens) for text in texts]
            return msgspec.json.encode([[tei.SimpleToken(*token) for token in tokens] for tokens in found])

        encoded = await self._endpoint.decode_inline_or_in_thread(encode, 4 * sum(map(len, texts)))
        return Response(encoded, media_type="application/json")

    async def _decode(self, request: Request, request_id: str) -> Response:
        message = await self._read(request, request_id, tei.DecodeRequest)
        task = self._choice.task_of(request, message.model, READS_TEXTS)
        inputs, field = texts_or_ids(list(message.ids), "ids")
        check_num_rows(len(inputs), self._endpoint.config.max_request_rows)
        checked = task.encoder.check_ids(inputs, field=field)
        skip = message.skip_special_tokens

        def encode() -> bytes:
            return msgspec.json.encode([task.encoder.text_of(each.ids, skip_special=skip) for each in checked])

        encoded = await self._endpoint.decode_inline_or_in_thread(encode, 4 * sum(len(each.ids) for each in checked))
        return Response(encoded, media_type="application/json")

    async def _info(self, request: Request, request_id: str) -> Response:
        task, config = self._choice.task_of(request, None, READS_TEXTS), self._endpoint.config
        name = request.path_params["model"]
        classes = tei.Classes(
            {str(number): label for number, label in enumerate(task.labels)},
            {label: number for number, label in enumerate(task.labels)},
        )
        model_type = tei.ModelType(classifier=classes)
        if EMBEDS.fits(task):
            model_type = tei.ModelType(embedding=tei.Pooling("part of the graph"))
        elif RANKS.fits(task):
            model_type = tei.ModelType(reranker=classes)
        info = tei.Info(
            model_id=name,
            model_dtype=str(self._catalog.precision_of(name)),
            model_type=model_type,
            max_concurrent_requests=config.max_queue,
            max_input_length=task.max_length,
            max_batch_tokens=config.max_batch_tokens,
            max_batch_requests=config.max_batch_rows,
            max_client_batch_size=config.max_request_rows,
            tokenization_workers=self._catalog.num_cores,
            version=installed_version(),
        )
        return json_response(info)

    async def _health(self, request: Request, request_id: str) -> Response:
        if (why := self._catalog.not_ready_because()) is not None:
            return json_response(tei.TeiErrorBody(why, "Unhealthy"), 503)
        return Response()


async def _refuse(text: str, request: Request, request_id: str) -> Response:
    raise Unsupported(text)


def _truncates(task: Any, message: tei.Truncates | tei.SimilarityParameters) -> bool:
    """Whether texts that are too long are cut.

    Raises:
        InvalidRequest: they are to be cut on the other side than the model's tokenizer does.
    """
    side, own = message.truncation_direction, task.encoder.cut_side
    if message.truncate and side is not None and side.lower() != own:
        raise InvalidRequest(f"truncation_direction is {side!r}; the model's tokenizer cuts on the {own}")
    return bool(message.truncate)
