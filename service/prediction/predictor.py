"""The predictor: the one object that every transport calls.

options + inputs ──> model ──> preprocess ──> batcher ──> postprocess ──> answer + Receipt
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from service.config import ServiceConfig
from service.errors import InvalidRequest
from service.explanation.explainer import Explainer
from service.explanation.planning import ExplanationPlan, check_request, plan_explanation
from service.models.explanation_graph import Explainable
from service.models.repository import ModelRepository
from service.prediction.accounting import Accounting, RequestAccount
from service.prediction.catalog import ModelCatalog
from service.prediction.messages import Classification, Explained, ExplainRequest, Receipt, RequestOptions, Translated
from service.prediction.preprocessing import Preprocessor
from service.prediction.preprocessing_pool import PreprocessingPool
from service.prediction.validation import (
    check_inputs,
    check_requested_outputs,
    check_single_input,
    require_image_classification,
    require_text_classification,
    require_translation,
    too_many_rows,
)
from service.process.memory_budget import ByteBudget
from service.scheduling.continuous_batcher import ContinuousBatcher
from service.scheduling.idle_executor import IdleExecutor
from service.tasks.classification import ScoreFunction
from service.tasks.image_classification import ImageClassification
from service.tasks.raw_tensors import RawTensors
from service.tasks.tokenization import texts_of
from service.tasks.translation import Translation
from service.telemetry.metrics import Metrics, Outcome, Protocol
from service.tensors import Arrays

if TYPE_CHECKING:  # needs an extra, which is installed only where tracing is asked for
    from service.telemetry.tracing import Tracing

# Tokens of a stream up to now, with the task that turns them into text; None ends the stream.
TokenQueue = asyncio.Queue[tuple[Translation, list[int]] | None]


class Predictor(ModelCatalog):
    """Answers requests with the models of a repository, and describes these models."""

    def __init__(
        self,
        repository: ModelRepository,
        metrics: Metrics,
        config: ServiceConfig,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Set up what requests share: threads, image memory, accounting.

        Args:
            repository: models that answer.
            metrics: counters of the server.
            config: limits of the server.
            tracing: exporter of spans, if any.
        """
        super().__init__(repository)
        self._config = config
        pool = PreprocessingPool(repository.num_cores, config.max_queue, repository.watchdog)
        metrics.preparing_rows.set_function(lambda: pool.rows)
        self._image_memory = ByteBudget("image memory", config.max_image_memory_bytes)
        metrics.show_budget(self._image_memory)
        self._preprocessor = Preprocessor(config, pool, self._image_memory)
        self._idle_executor = IdleExecutor(repository.num_cores, repository.host.preemption, repository.watchdog)
        self._explainer = Explainer(config.max_queue, self._idle_executor)
        self._accounting = Accounting(repository, metrics, config, self._idle_executor, tracing)

    async def infer(
        self, options: RequestOptions, inputs: Arrays, requested_outputs: Sequence[str] = ()
    ) -> tuple[Arrays, Receipt]:
        """Answer named tensors with named tensors, as the model's metadata describes them.

        Args:
            options: options of the request.
            inputs: each input tensor by name; BYTES as object arrays.
            requested_outputs: names of the outputs to return; empty for all.

        Returns:
            the output tensors by name, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self._accounting.open(options) as account:
            model = account.get_model()
            check_inputs(model.task, inputs)
            check_requested_outputs(model.task, requested_outputs)
            prepared = self._preprocessor.tensors(model.task, options, inputs)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            outputs = model.task.tensors(results)
            if requested_outputs:
                outputs = {name: outputs[name] for name in requested_outputs}
        return outputs, account.receipt

    async def classify_texts(
        self,
        options: RequestOptions,
        texts: Sequence[str],
        field: str = "text",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> tuple[list[Classification], Receipt]:
        """Classify texts.

        Args:
            options: options of the request.
            texts: at least one.
            field: name of the texts in error messages; `{}` in it becomes the text's number.
            function: how logits become scores.
            top_k: number of best classes to return; all if None.

        Returns:
            classes and scores of each text, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self._accounting.open(options) as account:
            model = account.get_model()
            task = require_text_classification(model)
            prepared = self._preprocessor.texts(task, options, texts, field)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            classifications = [task.postprocess(logits_C, function, top_k) for logits_C in results]
        return classifications, account.receipt

    async def classify_images(
        self,
        options: RequestOptions,
        images: Sequence[bytes],
        field: str = "image",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> tuple[list[Classification], Receipt]:
        """Classify encoded images.

        Args:
            options: options of the request.
            images: at least one; JPEG, PNG or WebP files, or their base64.
            field: name of the images in error messages; `{}` in it becomes the image's number.
            function: how logits become scores.
            top_k: number of best classes to return; all if None.

        Returns:
            classes and scores of each image, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self._accounting.open(options) as account:
            model = account.get_model()
            task = require_image_classification(model)
            prepared = self._preprocessor.images(task, options, images, field)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            classifications = [task.postprocess(logits_C, function, top_k) for logits_C in results]
        return classifications, account.receipt

    async def translate_texts(
        self, options: RequestOptions, texts: Sequence[str], field: str = "text"
    ) -> tuple[list[Translated], Receipt]:
        """Translate texts.

        Args:
            options: options of the request.
            texts: at least one.
            field: name of the texts in error messages; `{}` in it becomes the text's number.

        Returns:
            the translation of each text, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self._accounting.open(options) as account:
            model = account.get_model()
            task = require_translation(model)
            prepared = self._preprocessor.sentences(task, options, texts, field)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            translations = [task.postprocess(sentence) for sentence in results]
        return translations, account.receipt

    async def stream_translation(
        self, options: RequestOptions, text: str, field: str = "text"
    ) -> AsyncGenerator[str | tuple[Translated, Receipt], None]:
        """Translate a text piece by piece as it is decoded; the last element is the whole translation.

        Without `num_beams` the search is greedy, whatever the model's default: beams may change what was sent.

        Leaving the iteration early ends the work: the row is free at the next step.

        Args:
            options: options of the request.
            text: text to translate.
            field: name of the text in error messages.

        Yields:
            pieces of the translation, then the translation and the receipt.

        Raises:
            HeedError: see `service.errors`; before the first piece, unless it happens later.
        """
        token_queue: TokenQueue = asyncio.Queue()
        decoding = asyncio.create_task(self._decode_stream(options, text, field, token_queue))
        decoding.add_done_callback(lambda _: token_queue.put_nowait(None))
        sent = ""
        try:
            while (decoded := await token_queue.get()) is not None:
                task, ids = decoded
                so_far = task.text_so_far(ids)
                if len(so_far) > len(sent):
                    if not sent:
                        self._accounting.trace_first_piece()
                    yield so_far[len(sent) :]
                    sent = so_far
            translated, receipt = await decoding
            if len(translated.text) > len(sent):
                yield translated.text[len(sent) :]
            yield translated, receipt
        finally:
            decoding.cancel()

    async def _decode_stream(
        self, options: RequestOptions, text: str, field: str, token_queue: TokenQueue
    ) -> tuple[Translated, Receipt]:
        """Translate one text, and put its tokens into a queue after each step."""
        with self._accounting.open(options) as account:
            model = account.get_model()
            task = require_translation(model)
            prepared = self._preprocessor.sentences(task, _greedy(options), [text], field)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            assert isinstance(model.batcher, ContinuousBatcher)
            done = await model.batcher.submit(
                items, account.deadline_s, lambda _, ids: token_queue.put_nowait((task, ids))
            )
            (sentence,) = account.computed(done)
            translated = task.postprocess(sentence)
        return translated, account.receipt

    async def explain(
        self,
        options: RequestOptions,
        inputs: Arrays,
        request: ExplainRequest,
        field: str = "",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> tuple[Explained, Receipt]:
        """Answer a text or an image, and compute how much each part of it adds to the answer.

        The answer and its explanation are computed at low priority; the receipt covers both.

        Args:
            options: options of the request.
            inputs: the input tensor by name, of one element.
            request: options of the explanation.
            field: name of the input in error messages; as in `infer` if empty.
            function: how a classifier's logits become the answer's scores.
            top_k: number of best classes in the answer; all if None.

        Returns:
            the answer with its explanation, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self._accounting.open(options, explains=True) as account:
            model = account.get_model()
            task = check_request(model, request)
            check_inputs(task, inputs)
            check_single_input(inputs)
            with self._explainer.admitted():
                await self._explainer.get_ready(model, request, account.deadline_s)
                items, plan = await self._preprocess_explained(account, task, inputs, request, field)
                account.preprocessed(items)
                (first,) = await model.batcher.submit_low(items, account.deadline_s)
                asked = (model, plan, items[0], first.result)
                explanation, others = await self._explainer.explain(*asked, account.deadline_s)
            result, *_ = account.computed([first, *others])
            if isinstance(task, Translation):
                explained = Explained(task.postprocess(result), explanation)
            else:
                explained = Explained(task.postprocess(result, function, top_k), explanation)
        self._accounting.count_explanation(account, explanation)
        return explained, account.receipt

    async def _preprocess_explained(
        self, account: RequestAccount, task: Explainable, inputs: Arrays, request: ExplainRequest, field: str
    ) -> tuple[list[Any], ExplanationPlan]:
        """Preprocess the input of an explanation and plan its samples, once a core is idle."""
        await self._idle_executor.moment(account.deadline_s)
        is_image = isinstance(task, ImageClassification)
        field = field or ("image[0]" if is_image else "text[0]")
        given = inputs["image"].item(0) if is_image else texts_of(inputs)[0]
        prepared = self._preprocessor.tensors(task, account.options, inputs, field)
        items = prepared if isinstance(prepared, list) else await prepared
        planning = partial(
            plan_explanation,
            *(task, account.model.graph, request, items[0], given),
            truncate=account.options.truncate,
            field=field,
            max_image_pixels=self._config.max_image_pixels,
            memory=self._preprocessor.decoding_memory(account.deadline_s),
        )
        return items, await self._idle_executor.run(planning, account.deadline_s)

    def check_languages(self, name: str, source: str | None, target: str | None) -> None:
        """Refuse languages that differ from those of the model.

        Args:
            name: name of the model; models that do not translate pass.
            source: source language of the request, if it names one.
            target: target language of the request, if it names one.

        Raises:
            InvalidRequest: a language differs.
        """
        served = self._repository.state(name).served
        if served is None or not isinstance(served.task, Translation):
            return
        served.task.check_languages(source, target)

    def check_target(self, name: str, version: str, byte_elements: int) -> None:
        """Refuse what can be refused before a request's tensors are read, which takes time where they are large.

        Args:
            name: name of the model.
            version: version of the model, or empty.
            byte_elements: number of elements in the request's BYTES tensors, which are texts or images.

        Raises:
            NotFound, Unavailable: as for a request.
            InvalidRequest: the request has more texts or images than the limit.
        """
        served = self._repository.get(name, version)
        if byte_elements > self._config.max_request_rows and not isinstance(served.task, RawTensors):
            raise too_many_rows(byte_elements, self._config.max_request_rows)

    def count_failure(
        self, model: str, version: str, protocol: Protocol, request_id: str, outcome: Outcome, why: str
    ) -> None:
        """Count, log and trace a request that fails in the transport, before it reaches a method that answers.

        Args:
            model: name as the client wrote it.
            version: version as the client wrote it, or empty.
            protocol: protocol of the request.
            request_id: id of the request.
            outcome: label of the counter.
            why: text of the error.
        """
        self._accounting.count_failure(model, version, protocol, request_id, outcome, why)

    @property
    def holds_image_memory(self) -> bool:
        """Whether images are being decoded."""
        return self._image_memory.reserved_bytes > 0

    def announce_end(self) -> None:
        """Report the server as not ready from now on, because it will end soon; requests are still answered."""
        self._repository.ending = True

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        self._repository.draining = True
        await self._accounting.wait_until_answered()
        await self._repository.drain()


def _greedy(options: RequestOptions) -> RequestOptions:
    """Return options with greedy search where the request leaves the number of beams open; refuse more beams."""
    if options.num_beams is None:
        return msgspec.structs.replace(options, num_beams=1)
    if options.num_beams > 1:
        raise InvalidRequest(
            f"num_beams is {options.num_beams}; a stream takes 1, for beams may change what was sent already"
        )
    return options
