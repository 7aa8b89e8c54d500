"""The predictor: the one object that every transport calls.

options + inputs ──> model ──> prepare ──> batcher ──> finish ──> answer + Receipt
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from service.config import ServiceConfig
from service.errors import InvalidRequest
from service.explanation.explainer import Explainer
from service.explanation.planning import ExplanationPlan, check_request, plan_explanation
from service.models.repository import ModelRepository
from service.prediction.accounting import Accounting, RequestAccount
from service.prediction.catalog import ModelCatalog
from service.prediction.messages import Explained, ExplainRequest, Receipt, RequestOptions
from service.prediction.preprocessing import Preprocessor
from service.prediction.preprocessing_pool import PreprocessingPool
from service.prediction.top_classes import is_short, top_classes
from service.prediction.validation import (
    check_inputs,
    check_options,
    check_requested_outputs,
    check_single_input,
    require,
)
from service.process.memory_budget import ByteBudget
from service.scheduling.continuous_batcher import ContinuousBatcher
from service.scheduling.idle_executor import IdleExecutor
from service.tasks.explainable import Explainable
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions, AnswerT_co, Task, too_many_rows
from service.tasks.translation import Translated, Translation
from service.telemetry.metrics import Metrics
from service.tensors import Arrays, bytes_array

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing

NO_CLASSES: Mapping[str, int] = {}
RANKED = ("classes", "ranked")  # for messages: what is worked on in a thread, and how
# All tokens of a stream so far, with the task that turns them into text; None ends the stream.
TokenQueue = asyncio.Queue[tuple[Translation, list[int]] | None]


class Predictor:
    """Answers requests with the models of a repository.

    Attributes:
        catalog: describes the models.
        accounting: counts, logs and traces requests.
    """

    def __init__(
        self,
        repository: ModelRepository,
        metrics: Metrics,
        config: ServiceConfig,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Set up the resources that requests share: threads, image memory, accounting.

        Args:
            repository: models that answer.
            metrics: counters of the server.
            config: limits of the server.
            tracing: exporter of spans, if any.
        """
        self._repository, self._config = repository, config
        pool = PreprocessingPool(repository.num_cores, config.max_queue, repository.watchdog)
        metrics.preparing_rows.set_function(lambda: pool.rows)
        self._image_memory = ByteBudget("image memory", config.max_image_memory_bytes)
        metrics.show_budget(self._image_memory)
        self._preprocessor = Preprocessor(config, pool, self._image_memory)
        self._idle_executor = IdleExecutor(repository.num_cores, repository.host.preemption, repository.watchdog)
        self._explainer = Explainer(config.max_queue, self._idle_executor)
        self.catalog = ModelCatalog(repository)
        self.accounting = Accounting(repository, metrics, config, self._idle_executor, tracing)

    async def infer(
        self,
        options: RequestOptions,
        inputs: Arrays,
        requested_outputs: Sequence[str] = (),
        num_classes: Mapping[str, int] = NO_CLASSES,
    ) -> tuple[Arrays, Receipt]:
        """Answer named tensors with named tensors, as the model's metadata describes them.

        Args:
            options: options of the request.
            inputs: each input tensor by name; BYTES as object arrays.
            requested_outputs: names of the outputs to return; empty for all.
            num_classes: how many best classes to return in place of an output (`top_classes`), by its name.

        Returns:
            the output tensors by name, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self.accounting.open(options) as account:
            model = account.get_model()
            check_options(model, options)
            check_inputs(model.task, inputs)
            check_requested_outputs(model.task, requested_outputs, num_classes)
            prepared = self._preprocessor.prepare(model.task, options, model.task.read(inputs), "", account.deadline_s)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            outputs = model.task.to_tensors(results)
            if num_classes:
                outputs = await self._classified(model.task, outputs, num_classes, account.deadline_s)
            if requested_outputs:
                outputs = {name: outputs[name] for name in requested_outputs}
        return outputs, account.receipt

    async def _classified(
        self, task: Task[Any], outputs: Arrays, num_classes: Mapping[str, int], deadline_s: float
    ) -> Arrays:
        """Replace outputs by their best classes where these are asked for; long ones in a thread."""
        classified, specs = dict(outputs), {spec.name: spec for spec in task.outputs}
        for spec in task.outputs:
            if (count := num_classes.get(spec.name)) is not None:
                ranked = specs[spec.ranked_by or spec.name]
                array = outputs[ranked.name]
                rank = partial(top_classes, array, count, ranked)
                if is_short(array, count):
                    classified[spec.name] = rank()
                else:
                    classified[spec.name] = await self._preprocessor.run_in_thread(rank, deadline_s, RANKED)
        return classified

    async def answer(
        self,
        options: RequestOptions,
        kind: type[Task[AnswerT_co]],
        inputs: Sequence[Any],
        field: str = "",
        answer_options: AnswerOptions = DEFAULT_ANSWER,
    ) -> tuple[list[AnswerT_co], Receipt]:
        """Answer texts or files with the answers of a task.

        Args:
            options: options of the request.
            kind: task that the call is made for.
            inputs: at least one text or file (of an image, or its base64).
            field: name of an input in error messages; `{}` becomes the input's number. Empty: the task's own name.
            answer_options: how results become answers.

        Returns:
            the answer to each input, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self.accounting.open(options) as account:
            model = account.get_model()
            task = require(model, kind)
            check_options(model, options)
            prepared = self._preprocessor.prepare(task, options, inputs, field, account.deadline_s)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            results = account.computed(await model.batcher.submit(items, account.deadline_s))
            answers = [task.finish(result, answer_options) for result in results]
        return answers, account.receipt

    async def stream_translation(
        self, options: RequestOptions, text: str, field: str = "text"
    ) -> AsyncGenerator[str | tuple[Translated, Receipt], None]:
        """Translate a text piece by piece as it is decoded; the last element is the whole translation.

        Without `num_beams` the search is greedy, whatever the model's default: with beams, text already sent could
        change.

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
                        self.accounting.trace_first_piece()
                    yield so_far[len(sent) :]
                    sent = so_far
            translated, receipt = await decoding
            if len(translated.text) > len(sent):
                yield translated.text[len(sent) :]
            yield translated, receipt
        finally:
            decoding.cancel()

    async def stream_infer(
        self, options: RequestOptions, inputs: Arrays, requested_outputs: Sequence[str] = ()
    ) -> AsyncGenerator[tuple[Arrays, str, Receipt | None], None]:
        """Answer the tensor of one text with its translation in pieces; see `stream_translation`.

        The pieces of the first output, joined, are the translation. The last element has the other outputs.

        Args:
            options: options of the request.
            inputs: the input tensor by name, of one element.
            requested_outputs: names of the outputs to return; empty for all.

        Yields:
            output tensors by name, the version of the model, and the receipt in the last element.

        Raises:
            HeedError: see `service.errors`.
        """
        model = self._repository.get(options.model, options.version)
        task = require(model, Translation)
        check_options(model, options)
        check_inputs(task, inputs)
        check_requested_outputs(task, requested_outputs, NO_CLASSES)
        texts = task.read(inputs)
        if len(texts) != 1:
            raise InvalidRequest(f"a stream takes one text, the request has {len(texts)}")
        text_output, score_output = (spec.name for spec in task.outputs)
        wanted = requested_outputs or (text_output, score_output)
        options = msgspec.structs.replace(options, version=model.version)
        async with contextlib.aclosing(
            self.stream_translation(options, texts[0], task.input_field.format(0))
        ) as pieces:
            async for piece in pieces:
                if not isinstance(piece, str):
                    translated, receipt = piece
                    score = {score_output: np.array([translated.score], dtype=np.float32)}
                    yield {name: array for name, array in score.items() if name in wanted}, model.version, receipt
                elif text_output in wanted:
                    yield {text_output: bytes_array([piece.encode()])}, model.version, None

    async def _decode_stream(
        self, options: RequestOptions, text: str, field: str, token_queue: TokenQueue
    ) -> tuple[Translated, Receipt]:
        """Translate one text, and put its tokens into a queue after each step."""
        with self.accounting.open(options) as account:
            model = account.get_model()
            task = require(model, Translation)
            prepared = self._preprocessor.prepare(task, _greedy(options), [text], field, account.deadline_s)
            items = prepared if isinstance(prepared, list) else await prepared
            account.preprocessed(items)
            assert isinstance(model.batcher, ContinuousBatcher)
            done = await model.batcher.submit(
                items, account.deadline_s, lambda _, ids: token_queue.put_nowait((task, ids))
            )
            (sentence,) = account.computed(done)
            translated = task.finish(sentence)
        return translated, account.receipt

    async def explain(
        self,
        options: RequestOptions,
        inputs: Arrays | Sequence[Any],
        request: ExplainRequest,
        field: str = "",
        answer_options: AnswerOptions = DEFAULT_ANSWER,
    ) -> tuple[Explained, Receipt]:
        """Answer a text or an image, and compute how much each part of it adds to the answer.

        The answer and its explanation are computed at low priority; the receipt covers both.

        Args:
            options: options of the request.
            inputs: the input tensors by name, of one element each; or a list of the one input, as its task has read it.
            request: options of the explanation.
            field: name of the input in error messages; as in `infer` if empty.
            answer_options: how the result becomes the answer.

        Returns:
            the answer with its explanation, and the receipt.

        Raises:
            HeedError: see `service.errors`.
        """
        with self.accounting.open(options, explains=True) as account:
            model = account.get_model()
            check_options(model, options)
            task = check_request(model, request)
            given: Sequence[Any]
            if isinstance(inputs, Mapping):
                check_inputs(task, inputs)
                given = task.read(inputs)
            else:
                given = inputs
            check_single_input(given)
            with self._explainer.admitted():
                await self._explainer.get_ready(model, request, account.deadline_s)
                items, plan = await self._preprocess_explained(account, task, given, request, field)
                account.preprocessed(items)
                (first,) = await model.batcher.submit_low(items, account.deadline_s)
                asked = (model, plan, items[0], first.result)
                explanation, others = await self._explainer.explain(*asked, account.deadline_s)
            result, *_ = account.computed([first, *others])
            explained = Explained(task.finish(result, answer_options), explanation)
        self.accounting.count_explanation(account, explanation)
        return explained, account.receipt

    async def _preprocess_explained(
        self, account: RequestAccount, task: Explainable, given: Sequence[Any], request: ExplainRequest, field: str
    ) -> tuple[list[Any], ExplanationPlan]:
        """Preprocess the input of an explanation and plan its samples, once a core is idle."""
        await self._idle_executor.moment(account.deadline_s)
        field = field or task.input_field.format(0)
        prepared = self._preprocessor.prepare(task, account.options, given, field, account.deadline_s)
        items = prepared if isinstance(prepared, list) else await prepared
        planning = partial(
            plan_explanation,
            *(task, account.model.loaded.graph, request, items[0], given[0], f"model {account.model.name!r}"),
            truncate=account.options.truncate,
            field=field,
            max_image_pixels=self._config.max_image_pixels,
            memory=self._preprocessor.decoding_memory(account.deadline_s),
        )
        return items, await self._idle_executor.run(planning, account.deadline_s)

    def check_target(self, name: str, version: str, byte_elements: int) -> None:
        """Check a request before its tensors are read, because reading large tensors takes time.

        Args:
            name: name of the model.
            version: version of the model, or empty.
            byte_elements: number of elements in the request's BYTES tensors, which are texts or images.

        Raises:
            NotFound, Unavailable: as for a request.
            InvalidRequest: the request has more texts or images than the limit.
        """
        task = self._repository.get(name, version).task
        if byte_elements > self._config.max_request_rows and task.elements_are_rows:
            raise too_many_rows(byte_elements, self._config.max_request_rows)

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
        await self.accounting.wait_until_answered()
        await self._repository.drain()


def _greedy(options: RequestOptions) -> RequestOptions:
    """Return options with greedy search where the request leaves the number of beams open; refuse more beams."""
    if options.num_beams is None:
        return msgspec.structs.replace(options, num_beams=1)
    if options.num_beams > 1:
        raise InvalidRequest(
            f"num_beams is {options.num_beams}; a stream takes 1, because beams may change text that was sent"
        )
    return options
