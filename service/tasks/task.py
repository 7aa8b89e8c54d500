"""The protocol of a task: what every served model needs, and the records that tasks exchange with the other rooms.

    inputs ── prepare ──> items ── collate ──> engine ── split_batch ──> results ── finish ───────> answers
                            └────────── decoder ──────────────────────────┘       └─ to_tensors ──> output tensors

A task is pure: it knows neither the wire nor threads, engines or files. `service/tasks/table.py` lists the tasks that a
manifest can name, which have more to do (`service/tasks/stored_task.py`). A bare ONNX graph has the task `RawTensors`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, cast

from service.errors import InvalidRequest
from service.tasks.images.image_file import DecodingMemory
from service.tensors import Arrays, TensorSpec

if TYPE_CHECKING:  # each of the two protocols names the other
    from service.tasks.explainable import Explainable

AnswerT_co = TypeVar("AnswerT_co", covariant=True)

# How logits become scores, by the names of the Hugging Face task API.
ScoreFunction = Literal["softmax", "sigmoid", "none"]


class Item(Protocol):
    """An input as the batcher takes it."""

    @property
    def rows(self) -> int:
        """Rows that it takes in a batch."""

    @property
    def length(self) -> int:
        """Tokens of a row, including special ones; 1 where all rows have one size."""

    @property
    def truncated(self) -> bool:
        """Whether a part of the input was cut off."""


class PrepareOptions(Protocol):
    """The options of a request that change how inputs are prepared."""

    @property
    def truncate(self) -> bool:
        """Cut an input that is too long instead of refusing it."""

    @property
    def num_beams(self) -> int | None:
        """Beams of a search; None: the model's default, as for the options that follow."""

    @property
    def max_new_tokens(self) -> int | None:
        """Length at which a search ends."""

    @property
    def length_penalty(self) -> float | None:
        """Exponent of the length by which a search divides its scores."""

    @property
    def generation(self) -> "GenerationOptions | None":
        """Further options of a search; None for none."""

    @property
    def embedding(self) -> "EmbeddingOptions | None":
        """Options of a request for vectors; None for none."""


class GenerationOptions(NamedTuple):
    """Options of a search that few requests have; None leaves one to the model.

    Attributes:
        min_new_tokens: shortest translation, without the end-of-sentence token.
        no_repeat_ngram_size: length of sequences of tokens that may not occur twice; 0 for no rule.
        repetition_penalty: factor that makes tokens less likely that have occurred.
        src_lang: language of the source.
        tgt_lang: language of the translation.
    """

    min_new_tokens: int | None = None
    no_repeat_ngram_size: int | None = None
    repetition_penalty: float | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None


NO_GENERATION_OPTIONS = GenerationOptions()


class EmbeddingOptions(NamedTuple):
    """Options of a request for vectors; None leaves one to the model.

    Attributes:
        normalize: whether a vector is scaled to length 1.
        dimensions: number of elements that are kept of a vector.
        prompt_name: name of the text that is put before each input.
    """

    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None

    @property
    def answer(self) -> "AnswerOptions":
        """The options that shape the answer."""
        return AnswerOptions(normalize=self.normalize, dimensions=self.dimensions)


NO_EMBEDDING_OPTIONS = EmbeddingOptions()


class RequestLimits(NamedTuple):
    """Limits of the server on one request."""

    max_request_rows: int
    max_batch_rows: int
    max_image_pixels: int


class Preparation(NamedTuple):
    """The work that turns the inputs of a request into items.

    Attributes:
        steps: independent parts of the work, each returns items; may be called in any thread.
        rows: rows of the request, for the bound on waiting work.
        inline: whether the work is too short to be handed to a thread.
        noun: what is prepared, for messages: "texts".
        verb: what is done to it, for messages: "tokenized".
    """

    steps: Sequence[Callable[[], Sequence[Item]]]
    rows: int
    inline: bool
    noun: str
    verb: str


class AnswerOptions(NamedTuple):
    """Options that shape an answer; a task ignores options of other tasks.

    Attributes:
        function: how a classifier's logits become scores; None: as the model was trained.
        top_k: number of best classes in the answer; all if None.
        normalize: whether a vector is scaled to length 1; None: as the model was trained.
        dimensions: number of elements that are kept of a vector; all if None.
    """

    function: ScoreFunction | None = None
    top_k: int | None = None
    normalize: bool | None = None
    dimensions: int | None = None


DEFAULT_ANSWER = AnswerOptions()


class Task(Protocol[AnswerT_co]):
    """The task of a model: prepares inputs, batches them for the engine, and turns results into answers.

    Attributes:
        name: name in manifests and in the model index; Hugging Face's name of the task.
        accepts: noun for the inputs, in error messages: "texts".
        elements_are_rows: whether each element of an input tensor takes a row in a batch.
        input_field: name of an input in error messages; `{}` in it becomes the input's number.
        request_options: names of the `PrepareOptions` that the task uses; requests with others are refused.
    """

    name: ClassVar[str]
    accepts: ClassVar[str]
    elements_are_rows: ClassVar[bool]
    input_field: ClassVar[str]
    request_options: ClassVar[frozenset[str]]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors that every request brings."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors."""

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors that a request may bring."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes; empty where the task has none."""

    @property
    def explainable(self) -> "Explainable | None":
        """The task itself if its answers can be explained."""

    def max_inputs(self, max_request_rows: int) -> int:
        """Return how many inputs a request may have, where the first dimension of every tensor counts them; else 0.

        Args:
            max_request_rows: limit of the server on the rows of a request.
        """

    def read(self, inputs: Arrays) -> Any:
        """Return the inputs of a request that has the input tensors: what `prepare` takes.

        Raises:
            InvalidRequest: an element of a tensor cannot be read.
        """

    def prepare(
        self,
        inputs: Any,
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the work that turns inputs into items for the batcher.

        Args:
            inputs: texts, files, or tensors by name.
            options: options of the request.
            field: name of an input in error messages; `{}` in it becomes the input's number.
            limits: limits of the server.
            memory: memory that all decoded images share; None for no bound.

        Raises:
            InvalidRequest: the request has too many rows or wrong options. The steps raise it for wrong inputs.
        """

    def finish(self, result: Any, options: AnswerOptions = DEFAULT_ANSWER) -> AnswerT_co:
        """Turn the result of one item into an answer."""

    def to_tensors(self, results: Sequence[Any]) -> Arrays:
        """Make the output tensors of the results of one request, as the metadata describes them."""


class ShapedTask(Protocol):
    """A task whose output tensors depend on options of the request."""

    def to_tensors(self, results: Sequence[Any], options: AnswerOptions = DEFAULT_ANSWER) -> Arrays:
        """Make the output tensors of the results of one request, as its options ask for them."""


def output_tensors(task: Task[Any], results: Sequence[Any], options: EmbeddingOptions | None) -> Arrays:
    """Make the output tensors of the results of one request.

    Args:
        task: task of the model; where there are options, one whose `request_options` name them.
        results: results of the items.
        options: options of a request for vectors.
    """
    if options is None:
        return task.to_tensors(results)
    shaped: ShapedTask = cast("Any", task)
    return shaped.to_tensors(results, options.answer)


def check_num_rows(num_inputs: int, max_rows: int, what: str = "inputs", rows_each: int = 1) -> None:
    """Refuse a request with no rows or with too many, before any work is done for it.

    Args:
        num_inputs: inputs of the request.
        max_rows: limit of the server (max_request_rows).
        what: noun for the inputs in the message.
        rows_each: rows that each input takes in a batch; the beams of a translation.

    Raises:
        InvalidRequest: states the number and the limit.
    """
    if num_inputs == 0:
        raise InvalidRequest("the request has no inputs")
    if num_inputs * rows_each > max_rows:
        raise too_many_rows(num_inputs, max_rows, what, rows_each)


def too_many_rows(num_inputs: int, max_rows: int, what: str = "inputs", rows_each: int = 1) -> InvalidRequest:
    """Return the error for a request with too many rows; arguments as for `check_num_rows`."""
    beams = f" x {rows_each} num_beams = {num_inputs * rows_each} rows" if rows_each > 1 else ""
    return InvalidRequest(f"the request has {num_inputs} {what}{beams}, the limit is {max_rows} (max_request_rows)")
