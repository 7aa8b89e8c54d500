"""The predictor: what every transport calls. Validate, preprocess, submit, postprocess, time each stage.

Call + input ──> model ──> task.preprocess ──> batcher.submit ──> task.postprocess ──> answer + Receipt
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec
import structlog

from service.config import ServiceConfig
from service.engines.device import Place
from service.errors import (
    DeadlineExceeded,
    HeedError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
    clipped,
)
from service.explanation.explainer import METHODS, Explainer, ExplanationPlan, check, methods_of, take_apart
from service.explanation.explainer import ExplainRequest as ExplainRequest  # noqa: PLC0414, the same
from service.explanation.explainer import Explanation as Explanation  # noqa: PLC0414, the same
from service.explanation.graph_methods import AttentionSelector as AttentionSelector  # noqa: PLC0414, transports name it, and may not import it
from service.models.repository import ModelRepository, ServedModel
from service.prediction.preprocessing_pool import PreprocessingPool
from service.process.memory_budget import ByteBudget
from service.scheduling.admission import ItemResult
from service.scheduling.batch_forming import Item
from service.scheduling.continuous_batcher import ContinuousBatcher
from service.scheduling.idle_executor import IdleExecutor
from service.tasks.classification import Classification as Classification  # noqa: PLC0414, transports name it, and may not import tasks
from service.tasks.classification import Classifier, ScoreFunction
from service.tasks.image_classification import ImageClassification
from service.tasks.image_file import DecodingMemory
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification
from service.tasks.tokenization import texts_of
from service.tasks.translation import Translated as Translated  # noqa: PLC0414, transports name it, and may not import tasks
from service.tasks.translation import Translation
from service.tasks.translation_search import SearchRequest
from service.telemetry.metrics import UNKNOWN_MODEL, Metrics, Outcome, Protocol
from service.tensors import DATATYPE_OF_NUMPY, DTYPE_OF, Arrays, TensorSpec

if TYPE_CHECKING:  # it needs an extra, and is imported where that is asked for
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

# Requests whose texts have more characters than this are tokenized in threads, so that they do not hold up all others:
# at 2,000 characters that takes about 0.5 ms, the hand-over 0.1. A piece of such work ends with the text that brings it
# above so many characters: what has not begun at the deadline never will.
LONG_TEXT_CHARACTERS, PIECE_CHARACTERS = 2_000, 8_000
# What a character counts in a text with others than ASCII: normalization makes up to 18 of one (50 microseconds).
CHARACTER_WEIGHT = 8
# Strings of a bare model's inputs; more are decoded in a thread.
MAX_STRINGS_IN_LOOP = 4_096
# A call that ends within this time of its deadline has ended by it: the client's clock and ours run side by side, and
# the news that it has given up may come before our own timer.
DEADLINE_SLACK_S = 0.01
# Images are always decoded in threads: Pillow releases the interpreter's lock, and a large image takes hundreds of
# megabytes while it is decoded. Measured on one core: 0.03 to 0.05 ms for 32 x 32, 2 to 5 ms for 640 x 480, 14 ms for a
# JPEG of 12 megapixels and 250 ms for a WebP of that size. The length of a file does not tell, and the hand-over of
# 0.1 ms is little beside what an image model computes.

OUTCOME_OF: dict[type[HeedError], Outcome] = {
    InvalidRequest: "invalid",
    NotFound: "not_found",
    Unavailable: "unavailable",
    Overloaded: "overloaded",
    DeadlineExceeded: "expired",
    Unsupported: "invalid",
}

TaskName = Literal["text-classification", "image-classification", "translation", "tensors"]
TASK_NAMES: dict[type, TaskName] = {
    TextClassification: "text-classification",
    ImageClassification: "image-classification",
    Translation: "translation",
    RawTensors: "tensors",
}

T = TypeVar("T")
I = TypeVar("I", bound=Item)
# What tasks make of a request's inputs: the items, or where that takes long, when they are there.
Prepared = list[Any] | Awaitable[list[Any]]


class RequestOptions(msgspec.Struct, frozen=True, gc=False):
    """What a transport knows of a request besides its inputs."""

    model: str
    version: str  # empty: the default version
    protocol: Protocol
    request_id: str
    timeout_s: float | None = None  # None: the server's default
    truncate: bool = False
    # How to search for a translation; None: as the model does by default. Other models pass them over.
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Where the time of one request went, and in what company it was computed.

    A request whose rows went through several engine calls shows the longest wait and the largest call.
    """

    model_version: str
    preprocess_us: int
    queue_us: int
    compute_us: int
    postprocess_us: int
    batch_size: int
    padded_tokens: int
    batch_tokens: int
    truncated: bool

    def as_parameters(self) -> dict[str, int | bool]:
        """As response parameters of the Open Inference Protocol, which has a field of its own for the version."""
        parameters = msgspec.structs.asdict(self)
        del parameters["model_version"]
        return parameters

    def as_dict(self) -> dict[str, Any]:
        """All of it, by name."""
        return msgspec.structs.asdict(self)


class Explained(NamedTuple):
    """An answer, and why the model gives it."""

    answer: Classification | Translated
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The metadata of a model version."""

    name: str
    versions: list[str]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: dict[str, str]  # "batching", and "explain", "optional_inputs": names with commas between them


@dataclass(frozen=True, slots=True)
class IndexedModel:
    """What somebody who chooses a model wants to know of it."""

    name: str
    version: str  # that answers a request without one; empty where the folder has none
    versions: list[str]  # those that are ready
    task: TaskName | None  # None while no version can answer
    labels: list[str]  # of a classifier
    explain: list[str]  # the methods that it can be explained by
    ready: bool
    reason: str | None  # why it is not
    precision: str | None  # of the graphs that answer; None of a bare model
    cache: Place | None  # where a translation model keeps keys and values between two steps
    batching: str | None  # whether requests share its engine calls, and on what grounds; None while it cannot answer


class Predictor:
    """Answers requests with the models of a repository."""

    def __init__(
        self,
        repository: ModelRepository,
        metrics: Metrics,
        config: ServiceConfig,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._repository, self._metrics, self._config = repository, metrics, config
        self._tracing = tracing
        # Asked once: even a log line that is dropped costs time on every request.
        self._log_answers = config.log_level == "debug"
        self._preparation = PreprocessingPool(repository.num_cores, config.max_queue, repository.watchdog)
        self._image_memory = ByteBudget("image memory", config.max_image_memory_bytes)
        metrics.show_budget(self._image_memory)
        self._idle_executor = IdleExecutor(repository.num_cores, repository.watchdog)
        self._explainer = Explainer(config.max_queue, self._idle_executor)
        self._num_answering = 0  # requests between their admission and their answer, whatever they wait for
        self._all_answered = asyncio.Event()
        metrics.preparing_rows.set_function(lambda: self._preparation.rows)

    def infer(
        self, call: RequestOptions, inputs: Arrays, requested_outputs: Sequence[str] = ()
    ) -> Coroutine[Any, Any, tuple[Arrays, Receipt]]:
        """Named tensors in, named tensors out, as the model's metadata describes them.

        Args:
            call: the request's frame.
            inputs: each input tensor by name; BYTES as object arrays.
            requested_outputs: names of the outputs to return; empty for all.

        Raises:
            HeedError: see `service.errors`.
        """

        def prepare(model: ServedModel) -> Prepared:
            _check_inputs(model, inputs)
            if requested_outputs and (unknown := set(requested_outputs) - {spec.name for spec in model.task.outputs}):
                raise InvalidRequest(f"unknown output {', '.join(sorted(unknown))}; {_names(model.task.outputs)}")
            if isinstance(model.task, RawTensors):
                if sum([array.size for array in inputs.values() if array.dtype.hasobject]) > MAX_STRINGS_IN_LOOP:
                    return self._many_strings(model.task, call, inputs)
                rows = model.task.items(inputs)
                self._check_rows(sum([item.rows for item in rows]), "rows")
                return rows
            if isinstance(model.task, ImageClassification):
                return self._pixels(model.task, call, inputs["image"].tolist(), "image[{}]")
            texts = texts_of(inputs)
            if isinstance(model.task, Translation):
                return self._sentences(model.task, call, texts, "text[{}]")
            return self._tokens(model.task, call, texts, "text[{}]")

        def finish(model: ServedModel, results: list[Any]) -> Arrays:
            outputs = model.task.tensors(results)
            return {name: outputs[name] for name in requested_outputs} if requested_outputs else outputs

        return self._answer(call, prepare, finish)

    def classify_texts(
        self,
        call: RequestOptions,
        texts: Sequence[str],
        field: str = "text",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> Coroutine[Any, Any, tuple[list[Classification], Receipt]]:
        """Texts in, their classes and scores out.

        Args:
            call: the request's frame.
            texts: at least one.
            field: what the client calls the texts, for messages; `{}` in it becomes the text's number.
            function: how logits become scores.
            top_k: that many best classes; all if None.

        Raises:
            HeedError: see `service.errors`.
        """

        def prepare(model: ServedModel) -> Prepared:
            return self._tokens(_text_classification(model), call, texts, field)

        def finish(model: ServedModel, results: list[Any]) -> list[Classification]:
            task = _text_classification(model)
            return [task.postprocess(logits_C, function, top_k) for logits_C in results]

        return self._answer(call, prepare, finish)

    def classify_images(
        self,
        call: RequestOptions,
        images: Sequence[bytes],
        field: str = "image",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> Coroutine[Any, Any, tuple[list[Classification], Receipt]]:
        """Encoded images in, their classes and scores out.

        Args:
            call: the request's frame.
            images: at least one; JPEG, PNG or WebP files, or their base64.
            field: what the client calls the images, for messages; `{}` in it becomes the image's number.
            function: how logits become scores.
            top_k: that many best classes; all if None.

        Raises:
            HeedError: see `service.errors`.
        """

        def prepare(model: ServedModel) -> Prepared:
            return self._pixels(_image_classification(model), call, images, field)

        def finish(model: ServedModel, results: list[Any]) -> list[Classification]:
            task = _image_classification(model)
            return [task.postprocess(logits_C, function, top_k) for logits_C in results]

        return self._answer(call, prepare, finish)

    def translate_texts(
        self, call: RequestOptions, texts: Sequence[str], field: str = "text"
    ) -> Coroutine[Any, Any, tuple[list[Translated], Receipt]]:
        """Texts in, their translations out.

        Args:
            call: the request's frame.
            texts: at least one.
            field: what the client calls the texts, for messages; `{}` in it becomes the text's number.

        Raises:
            HeedError: see `service.errors`.
        """

        def prepare(model: ServedModel) -> Prepared:
            return self._sentences(_translation(model), call, texts, field)

        def finish(model: ServedModel, results: list[Any]) -> list[Translated]:
            task = _translation(model)
            return [task.postprocess(sentence) for sentence in results]

        return self._answer(call, prepare, finish)

    async def stream_translation(
        self, call: RequestOptions, text: str, field: str = "text"
    ) -> AsyncGenerator[str | tuple[Translated, Receipt], None]:
        """A text in; its translation piece by piece as it is decoded, and at last the whole of it.

        Without `num_beams` the search is greedy, whatever the model's default is: beams may change what was sent.

        Leaving the iteration early ends the work: the row is free at the next step.

        Raises:
            HeedError: see `service.errors`; before the first piece, unless it happens later.
        """
        token_queue: asyncio.Queue[list[int] | None] = asyncio.Queue()
        tasks: list[Translation] = []

        def prepare(model: ServedModel) -> Prepared:
            tasks.append(_translation(model))
            if call.num_beams is not None and call.num_beams > 1:
                raise InvalidRequest(
                    f"num_beams is {call.num_beams}; a stream takes 1, for beams may change what was sent already"
                )
            greedy = msgspec.structs.replace(call, num_beams=1) if call.num_beams is None else call
            return self._sentences(tasks[0], greedy, [text], field)

        def finish(model: ServedModel, results: list[Any]) -> Translated:
            return tasks[0].postprocess(results[0])

        working = asyncio.create_task(
            self._answer(call, prepare, finish, on_tokens=lambda number, ids: token_queue.put_nowait(ids))
        )
        working.add_done_callback(lambda _: token_queue.put_nowait(None))
        sent = ""
        try:
            while (ids := await token_queue.get()) is not None:
                so_far = tasks[0].text_so_far(ids)
                if len(so_far) > len(sent):
                    if not sent and self._tracing is not None and (trace := self._tracing.current()) is not None:
                        trace.first_piece()
                    yield so_far[len(sent) :]
                    sent = so_far
            translated, receipt = await working
            if len(translated.text) > len(sent):
                yield translated.text[len(sent) :]
            yield translated, receipt
        finally:
            working.cancel()

    async def explain(
        self,
        call: RequestOptions,
        inputs: Arrays,
        request: ExplainRequest,
        field: str = "",
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> tuple[Explained, Receipt]:
        """A text or an image in; the model's answer out, and how much each part of the input adds to it.

        All of it is computed at low priority, also the answer. The receipt is that of all of it.

        Args:
            call: the request's frame.
            inputs: the input tensor by name, of one element.
            request: what is asked of the explanation.
            field: what the client calls the input, for messages; as in `infer` if empty.
            function: how a classifier's logits become the answer's scores.
            top_k: that many best classes in the answer; all if None.

        Raises:
            HeedError: see `service.errors`.
        """
        started_s = time.monotonic()
        questions: list[ExplanationPlan] = []
        explanations: list[Explanation] = []
        admitted = contextlib.ExitStack()

        async def prepare(model: ServedModel) -> list[Any]:
            check(model, request)
            _check_inputs(model, inputs)
            task = model.task
            assert not isinstance(task, RawTensors)
            if (count := sum(array.size for array in inputs.values())) != 1:
                raise InvalidRequest(f"an explanation is of one input, the request has {count}")
            admitted.enter_context(self._explainer.admitted())
            deadline_s = started_s + self._timeout_s(call)
            await self._explainer.get_ready(model, request, deadline_s)
            await self._idle_executor.moment(deadline_s)
            given: str | bytes
            prepared: Prepared
            if isinstance(task, ImageClassification):
                given, named = inputs["image"].item(0), field or "image[0]"
                prepared = self._pixels(task, call, inputs["image"].tolist(), named)
            else:
                texts, named = texts_of(inputs), field or "text[0]"
                given = texts[0]
                if isinstance(task, Translation):
                    prepared = self._sentences(task, call, texts, named)
                else:
                    prepared = self._tokens(task, call, texts, named)
            items = prepared if isinstance(prepared, list) else await prepared
            limit, memory = self._config.max_image_pixels, DecodingMemory(self._image_memory, deadline_s)
            taking_apart = partial(
                take_apart,
                *(task, model.graph, request, items[0], given),
                truncate=call.truncate,
                field=named,
                max_image_pixels=limit,
                memory=memory,
            )
            questions.append(await self._idle_executor.run(taking_apart, deadline_s))
            return items

        async def submit(model: ServedModel, items: Sequence[Any], deadline_s: float) -> list[ItemResult]:
            (done,) = await model.batcher.submit_low(items, deadline_s)
            explanation, others = await self._explainer.explain(model, questions[0], items[0], done.result, deadline_s)
            explanations.append(explanation)
            return [done, *others]

        def finish(model: ServedModel, results: list[Any]) -> Explained:
            task, result = model.task, results[0]
            assert not isinstance(task, RawTensors)
            answer: Classification | Translated
            if isinstance(task, Translation):
                answer = task.postprocess(result)
            else:
                answer = task.postprocess(result, function, top_k)
            return Explained(answer, explanations[0])

        with admitted:
            explained, receipt = await self._answer(call, prepare, finish, submit=submit)
        method, evaluations = explained.explanation.method, explained.explanation.fidelity.evaluations
        tally = self._metrics.explained(call.model, receipt.model_version, method)
        tally.count(time.monotonic() - started_s, evaluations)
        return explained, receipt

    def check_languages(self, name: str, source: str | None, target: str | None) -> None:
        """Refuse a request that names other languages than those of the model.

        Raises:
            InvalidRequest: it does.
        """
        served = self._repository.state(name).served
        if served is None or not isinstance(served.task, Translation):
            return
        served.task.check_languages(source, target)

    def _sentences(self, task: Translation, call: RequestOptions, texts: Sequence[str], field: str) -> Prepared:
        request = SearchRequest(call.num_beams, call.max_new_tokens, call.length_penalty)
        task.check(request)
        beams, most = request.num_beams or task.defaults.num_beams, self._config.max_batch_rows
        if beams > most:
            raise InvalidRequest(f"num_beams is {beams}, the server's limit is {most} (max_batch_rows)")
        self._check_rows(len(texts), "texts", beams)
        return self._tokens(task, call, texts, field, request=request)

    def _tokens(
        self,
        task: TextClassification | Translation,
        call: RequestOptions,
        texts: Sequence[str],
        field: str,
        **options: Any,
    ) -> Prepared:
        """Tokenize the texts of a request; `options` go to the task's `preprocess_all`."""
        self._check_rows(len(texts))
        options |= {"truncate": call.truncate, "field": field}
        weights = [len(text) if text.isascii() else CHARACTER_WEIGHT * len(text) for text in texts]
        if sum(weights) <= LONG_TEXT_CHARACTERS:
            return task.preprocess_all(texts, **options)
        return self._tokens_of_long(task, call, texts, weights, options)

    async def _tokens_of_long(
        self,
        task: TextClassification | Translation,
        call: RequestOptions,
        texts: Sequence[str],
        weights: Sequence[int],
        options: dict[str, Any],
    ) -> list[Any]:
        """The same in threads, in pieces of such weights."""
        tokenizing: list[Callable[[], list[Any]]] = []
        first, piece = 0, 0
        for number, weight in enumerate(weights, 1):
            piece += weight
            if piece > PIECE_CHARACTERS or number == len(texts):
                tokenizing.append(partial(task.preprocess_all, texts[first:number], first=first, **options))
                first, piece = number, 0
        timeout_s, words = self._timeout_s(call), ("texts", "tokenized")
        return list(chain(*await self._preparation.run(tokenizing, rows=len(texts), timeout_s=timeout_s, words=words)))

    async def _many_strings(self, task: RawTensors, call: RequestOptions, inputs: Arrays) -> list[Any]:
        """The items of a request with many strings, which are decoded in a thread."""
        timeout_s, words = self._timeout_s(call), ("strings", "decoded")
        (rows,) = await self._preparation.run([partial(task.items, inputs)], rows=1, timeout_s=timeout_s, words=words)
        self._check_rows(sum([item.rows for item in rows]), "rows")
        return rows

    def _pixels(self, task: ImageClassification, call: RequestOptions, images: Sequence[bytes], field: str) -> Prepared:
        """Decode the images of a request, side by side."""
        self._check_rows(len(images))
        limit = self._config.max_image_pixels
        timeout_s, words = self._timeout_s(call), ("images", "decoded")
        memory = DecodingMemory(self._image_memory, time.monotonic() + timeout_s)
        decoding = [
            partial(task.preprocess, image, field=field.format(number), max_image_pixels=limit, memory=memory)
            for number, image in enumerate(images)
        ]
        return self._preparation.run(decoding, rows=len(images), timeout_s=timeout_s, words=words)

    def announce_end(self) -> None:
        """Be unready from now on, for the server will end soon; requests are still answered."""
        self._repository.ending = True

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        self._repository.draining = True
        if self._num_answering:
            await self._all_answered.wait()
        await self._repository.drain()

    def check_target(self, name: str, version: str, byte_elements: int) -> None:
        """Refuse what can be refused before a request's tensors are read, which takes time where they are large.

        Args:
            name: of the model.
            version: of the model, or empty.
            byte_elements: elements of its BYTES tensors, which are texts or images.

        Raises:
            NotFound, Unavailable: as for a request.
            InvalidRequest: more texts or images than a request may have.
        """
        served = self._repository.get(name, version)
        if byte_elements > self._config.max_request_rows and not isinstance(served.task, RawTensors):
            raise self._too_many(byte_elements)

    def _timeout_s(self, call: RequestOptions) -> float:
        return self._config.default_timeout_s if call.timeout_s is None else call.timeout_s

    def _check_rows(self, inputs: int, what: str = "inputs", rows_each: int = 1) -> None:
        """Refuse a request of too many rows, and one of none, before any work is done for it."""
        if inputs == 0:
            raise InvalidRequest("the request has no inputs")
        if inputs * rows_each > self._config.max_request_rows:
            raise self._too_many(inputs, what, rows_each)

    def _too_many(self, inputs: int, what: str = "inputs", rows_each: int = 1) -> InvalidRequest:
        beams = f" x {rows_each} num_beams = {inputs * rows_each} rows" if rows_each > 1 else ""
        limit = f"the limit is {self._config.max_request_rows} (max_request_rows)"
        return InvalidRequest(f"the request has {inputs} {what}{beams}, {limit}")

    async def _answer(
        self,
        call: RequestOptions,
        prepare: Callable[[ServedModel], Prepared],
        finish: Callable[[ServedModel, list[Any]], T],
        on_tokens: Callable[[int, list[int]], None] | None = None,
        submit: Callable[[ServedModel, Sequence[Any], float], Awaitable[list[ItemResult]]] | None = None,
    ) -> tuple[T, Receipt]:
        """The way of every request, with its stages timed and its end counted.

        `on_tokens` is told of each token of a translation model as it comes. `submit` takes the place of the batcher's
        where a model is asked more than once; the times of such a request are not among those of predictions.
        """
        started_s = prepared_s = time.monotonic()
        timeout_s = self._timeout_s(call)
        name, version = call.model, call.version
        admitted = self._enter(urgent=submit is None)
        try:
            if not admitted:
                raise Unavailable("the server is shutting down")
            model = self._repository.get(name, version)
            name, version = model.name, model.version
            prepared = prepare(model)
            items = prepared if isinstance(prepared, list) else await prepared
            prepared_s = time.monotonic()
            if submit is not None:
                done = await submit(model, items, started_s + timeout_s)
            elif isinstance(model.batcher, ContinuousBatcher):
                done = await model.batcher.submit(items, started_s + timeout_s, on_tokens)
            else:
                done = await model.batcher.submit(items, started_s + timeout_s)
            computed_s = time.monotonic()
            answer = finish(model, [entry.result for entry in done])
            ended_s = time.monotonic()
        except asyncio.CancelledError:
            # gRPC cancels a call whose deadline has passed, just as one that the client has cancelled.
            past_deadline = time.monotonic() - started_s >= timeout_s - DEADLINE_SLACK_S
            outcome: Outcome = "expired" if past_deadline else "cancelled"
            self._answer_failed(call, name, version, outcome, "the call has been cancelled", started_s, prepared_s)
            raise
        except HeedError as error:
            self._answer_failed(call, name, version, outcome_of(error), str(error), started_s, prepared_s)
            error.counted = True
            raise
        except Exception:
            self._answer_failed(call, name, version, "failed", "unexpected error", started_s, prepared_s)
            raise
        finally:
            self._leave(admitted, urgent=submit is None)
        receipt = _receipt(version, items, done, started_s, prepared_s, computed_s, ended_s)
        self._metrics.count(name, version, call.protocol, "ok")
        if submit is None:
            self._metrics.stages(name, version, call.protocol).observe(
                ended_s - started_s,
                prepared_s - started_s,
                receipt.queue_us * 1e-6,
                receipt.compute_us * 1e-6,
                ended_s - computed_s,
            )
        if self._tracing is not None:
            times_s = (started_s, prepared_s, computed_s, ended_s)
            self._trace_answer(call, model, done, times_s, receipt, explained=submit is not None)
        if self._log_answers:
            log.debug(
                "request answered",
                request_id=call.request_id,
                model=name,
                **receipt.as_dict(),
            )
        return answer, receipt

    def _enter(self, *, urgent: bool) -> bool:
        """A request has come; whether it is admitted."""
        admitted = not self._repository.draining
        self._num_answering += admitted
        if urgent:
            self._idle_executor.answering()
        return admitted

    def _leave(self, admitted: bool, *, urgent: bool) -> None:
        """It has ended."""
        if urgent:
            self._idle_executor.answered()
        self._num_answering -= admitted
        if self._repository.draining and not self._num_answering:
            self._all_answered.set()

    def _trace_answer(
        self,
        call: RequestOptions,
        model: ServedModel,
        done: list[ItemResult],
        times_s: tuple[float, float, float, float],
        receipt: Receipt,
        *,
        explained: bool,
    ) -> None:
        """The spans of an answer's stages, and the trace beside what was just counted of them."""
        if self._tracing is None or (trace := self._tracing.current()) is None:
            return
        in_flight = isinstance(model.batcher, ContinuousBatcher)
        trace.answered(
            model.name, model.version, call.request_id, done, times_s, in_flight=in_flight, explained=explained
        )
        if explained or (trace_id := trace.sampled_trace_id) is None:
            return
        started_s, prepared_s, computed_s, ended_s = times_s
        self._metrics.stages(model.name, model.version, call.protocol).exemplify(
            trace_id,
            preprocess=prepared_s - started_s,
            queue=receipt.queue_us * 1e-6,
            compute=receipt.compute_us * 1e-6,
            postprocess=ended_s - computed_s,
            total=ended_s - started_s,
        )

    def _answer_failed(
        self,
        call: RequestOptions,
        name: str,
        version: str,
        outcome: Outcome,
        why: str,
        started_s: float,
        prepared_s: float,
    ) -> None:
        self.count_failure(name, version, call.protocol, call.request_id, outcome, why)
        if self._tracing is None or (trace := self._tracing.current()) is None:
            return
        if prepared_s != started_s:
            # Where a batcher has raised, nobody knows how long the request waited and how long it was computed.
            trace.stage_failed("submit", prepared_s, why)
        elif outcome not in ("not_found", "unavailable"):  # these had no model to prepare for
            trace.stage_failed("preprocess", started_s, why)

    def count_failure(
        self, model: str, version: str, protocol: Protocol, request_id: str, outcome: Outcome, why: str
    ) -> None:
        """Count and log a request that has ended without an answer; `model` and `version` as the client names them.

        Transports call it for what fails before a request reaches any other method, which count themselves.
        """
        log.info("request refused", request_id=request_id, model=clipped(model), outcome=outcome, why=why)
        try:
            state = self._repository.state(model, version)
        except (NotFound, Unavailable):
            model, version = UNKNOWN_MODEL, ""
        else:
            model, version = state.name, state.version
        self._metrics.count(model, version, protocol, outcome)
        if self._tracing is not None and (trace := self._tracing.current()) is not None:
            trace.refused(model, version, request_id, outcome, why)

    def describe(self, name: str, version: str = "") -> ModelDescription:
        """The metadata of a model.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        return ModelDescription(
            name,
            self._repository.versions(name),
            "onnxruntime_onnx",
            model.task.inputs,
            model.task.outputs,
            _properties(model),
        )

    def index(self) -> list[IndexedModel]:
        """Every model of the store by name, also those that are not ready."""
        indexed = []
        for name in sorted({state.name for state in self._repository.states.values()}):
            state = self._repository.state(name)
            served = state.served
            task = None if served is None else served.task
            why = self.problem_of(name)
            indexed.append(
                IndexedModel(
                    name=name,
                    version=state.version,
                    versions=self._repository.versions(name),
                    task=None if task is None else TASK_NAMES[type(task)],
                    labels=task.labels if isinstance(task, Classifier) else [],
                    explain=[] if state.served is None else [*methods_of(state.served)],
                    ready=why is None,
                    reason=why,
                    precision=None if served is None else served.precision,
                    cache=None if served is None else served.cache_place,
                    batching=None if served is None else served.batching.describe(),
                )
            )
        return indexed

    def card(self, name: str, version: str = "") -> str:
        """The model card, in Markdown.

        Raises:
            NotFound: the model's folder has none; or as for a request.
            Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        if model.card is None:
            raise NotFound(f"model {model.name!r} version {model.version!r} has no model card (README.md)")
        return model.card

    def problem_of(self, name: str, version: str = "") -> str | None:
        """Why a model would not answer now, or None when it would.

        Raises:
            NotFound: there is no such model.
        """
        if self.draining or self._repository.ending:
            return "the server is shutting down"
        try:
            return self._repository.state(name, version).current_problem()
        except Unavailable as error:
            return str(error)

    @property
    def draining(self) -> bool:
        """Whether the server shuts down."""
        return self._repository.draining

    @property
    def extensions(self) -> list[str]:
        """What the server's metadata tells beside its name: extensions of the protocol, and where it computes.

        A method of explanation is named that some model may have; which has it, its own metadata say.
        """
        methods = [f"explain:{method}" for method in METHODS]
        return ["binary_tensor_data", "explain", *methods, f"device:{self._repository.device}"]

    @property
    def holds_image_memory(self) -> bool:
        """Whether images are being decoded."""
        return self._image_memory.reserved_bytes > 0

    def not_ready_because(self) -> str | None:
        """Why the server should get no requests now, or None."""
        return self._repository.not_ready_because()

    def problems(self) -> dict[str, str]:
        """Which models would not answer now, and why."""
        return self._repository.problems()

    def model_names(self) -> list[str]:
        """Every model of the store that is ready in some version."""
        names = {state.name for state in self._repository.states.values() if state.current_problem() is None}
        return sorted(names)

    def text_classifiers(self) -> list[str]:
        """The names among them that answer texts with labels."""
        return self._names_of(TextClassification)

    def image_classifiers(self) -> list[str]:
        """The names among them that answer images with labels."""
        return self._names_of(ImageClassification)

    def translators(self) -> list[str]:
        """The names among them that answer texts with translations."""
        return self._names_of(Translation)

    def _names_of(self, kind: type[Classifier] | type[Translation]) -> list[str]:
        described = ((name, self._repository.state(name).served) for name in self.model_names())
        return [name for name, served in described if served and isinstance(served.task, kind)]

    def task_of(self, name: str) -> TaskName:
        """What a model does, in the hub's words; "tensors" for one without a task.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        return TASK_NAMES[type(self._repository.get(name).task)]


def outcome_of(error: HeedError) -> Outcome:
    """How a request has ended that ended so."""
    return next((known for kind, known in OUTCOME_OF.items() if isinstance(error, kind)), "failed")


def _translation(model: ServedModel) -> Translation:
    if not isinstance(model.task, Translation):
        raise InvalidRequest(f"model {model.name!r} is not a translation model; it takes {_taken(model)}")
    return model.task


def _text_classification(model: ServedModel) -> TextClassification:
    if not isinstance(model.task, TextClassification):
        raise InvalidRequest(f"model {model.name!r} is not a text-classification model; it takes {_taken(model)}")
    return model.task


def _image_classification(model: ServedModel) -> ImageClassification:
    if not isinstance(model.task, ImageClassification):
        raise InvalidRequest(f"model {model.name!r} is not an image-classification model; it takes {_taken(model)}")
    return model.task


def _taken(model: ServedModel) -> str:
    if isinstance(model.task, RawTensors):
        return "tensors"
    if isinstance(model.task, Translation):
        return "texts, and gives translations"
    return "images" if isinstance(model.task, ImageClassification) else "texts"


def _check_inputs(model: ServedModel, inputs: Arrays) -> None:
    """Refuse tensors that do not fit the model's metadata, by name, type or shape."""
    specs = model.task.inputs
    optional = model.task.optional_inputs if isinstance(model.task, RawTensors) else ()
    if optional:
        specs = (*specs, *(spec for spec in optional if spec.name in inputs))
    if len(inputs) > len(specs):
        raise _misnamed(inputs, specs, optional)
    for spec in specs:
        name = spec.name
        if (array := inputs.get(name)) is None:
            raise _misnamed(inputs, specs, optional)
        if array.dtype != DTYPE_OF[spec.datatype]:
            datatype = DATATYPE_OF_NUMPY[array.dtype]
            raise InvalidRequest(f"input {name!r} has datatype {datatype}, the model takes {spec.datatype}")
        if not spec.admits(array.shape):
            raise InvalidRequest(
                f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)} (-1: any size)"
            )


def _misnamed(inputs: Arrays, specs: Sequence[TensorSpec], optional: Sequence[TensorSpec]) -> InvalidRequest:
    names = {spec.name for spec in specs}
    if unknown := inputs.keys() - names:
        known = dict.fromkeys([*specs, *optional])
        return InvalidRequest(f"unknown input {', '.join(sorted(unknown))}; {_names([*known])}")
    return InvalidRequest(f"input {', '.join(sorted(names - inputs.keys()))} is missing; {_names(specs)}")


def _properties(model: ServedModel) -> dict[str, str]:
    properties = {"batching": model.batching.describe()}
    if methods := methods_of(model):
        properties["explain"] = ",".join(methods)
    if model.remark is not None:
        properties["remark"] = model.remark
    if isinstance(model.task, RawTensors) and model.task.optional_inputs:
        properties["optional_inputs"] = ",".join(spec.name for spec in model.task.optional_inputs)
    return properties


def _names(specs: Sequence[TensorSpec]) -> str:
    return f"the model has {', '.join(spec.name for spec in specs)}"


def _receipt(
    version: str,
    items: Sequence[Any],
    done: list[ItemResult],
    started_s: float,
    prepared_s: float,
    computed_s: float,
    ended_s: float,
) -> Receipt:
    queue_s, batch, truncated = done[0].queue_s, done[0].batch, False
    for other in done:
        queue_s = max(queue_s, other.queue_s)
        if other.batch.rows > batch.rows:
            batch = other.batch
    for item in items:
        truncated = truncated or item.truncated
    return Receipt(
        model_version=version,
        preprocess_us=int(1e6 * (prepared_s - started_s)),
        queue_us=int(1e6 * queue_s),
        compute_us=int(1e6 * batch.compute_s),
        postprocess_us=int(1e6 * (ended_s - computed_s)),
        batch_size=batch.rows,
        padded_tokens=batch.padded_tokens,
        batch_tokens=batch.tokens,
        truncated=truncated,
    )
