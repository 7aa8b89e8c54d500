"""The protocol of a task that a manifest names: its models are opened from a folder, proved, and have a task API."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.tasks.task import DEFAULT_ANSWER, AnswerOptions, AnswerT_co, EmbeddingOptions, GenerationOptions, Task
from service.tensors import Arrays

C = TypeVar("C")


class TaskError(ValueError):
    """The files of a model folder do not describe a model of this task; the message says why."""


class TaskFiles(Protocol):
    """The part of a model folder that describes its task."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes, in the order of their numbers."""

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, including special ones."""

    def text(self, name: str) -> str | None:
        """Return a text file's contents, or None if the folder has no such file."""

    def config(self, name: str, kind: type[C]) -> C:
        """Decode a JSON file into a message."""

    def settings(self, kind: type[C]) -> C:
        """Decode the settings of the task; return `kind()` where the folder has none."""


class Example(Protocol):
    """A golden example: raw inputs, the tensors they become, and the answers of the original PyTorch model."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """Raw inputs; files as base64."""

    @property
    def tensors(self) -> Mapping[str, list[int] | str]:
        """The tensors that the inputs become; large ones as a digest."""

    @property
    def outputs(self) -> Mapping[str, list[float]]:
        """The answers of the original model."""


class Tolerance(Protocol):
    """The largest allowed difference between an answer and the golden one."""

    @property
    def max_abs_logit_difference(self) -> float:
        """Largest absolute difference of a logit or a score."""

    @property
    def labels_must_agree(self) -> bool:
        """Whether the predicted class must be the same."""


class Padding(NamedTuple):
    """The padding that rounds engine calls on a GPU up to a few sizes.

    Attributes:
        max_length: longest row, or None where all rows have one size.
        values: the padding value of each graph input; 0 for those that are not listed.
    """

    max_length: int | None = None
    values: Mapping[str, int] = {}


class HubCall(NamedTuple):
    """A request of the Hugging Face task API, as its task has read it.

    Attributes:
        inputs: the inputs, as `prepare` takes them.
        field: name of an input in error messages; `{}` in it becomes the input's number.
        truncate: cut inputs that are too long.
        num_beams: beams of a search. For this and the next two, None is the model's default.
        max_new_tokens: length at which a search ends.
        length_penalty: exponent of the length by which a search divides its scores.
        generation: further options of a search, if the request has any.
        embedding: options of a request for vectors, if it has any.
        answer: how results become answers.
        explain: the parameter `explain` (`ExplainParameters`), if the request has it.
        stream: whether the answer is sent piece by piece.
        document: makes one document of the answers to all inputs; None: each input has a document of its own.
        rows_of: makes the answers to all inputs at once from their results, one row each, float32 [n, D]; None: the
            answers are made one by one.
    """

    inputs: Sequence[Any]
    field: str
    truncate: bool = False
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    generation: GenerationOptions | None = None
    embedding: EmbeddingOptions | None = None
    answer: AnswerOptions = DEFAULT_ANSWER
    explain: Any = None
    stream: bool = False
    document: Callable[[Any], Any] | None = None
    rows_of: Callable[[Sequence[Any]], NDArray[np.float32]] | None = None


class StoredTask(Task[AnswerT_co], Protocol[AnswerT_co]):
    """A task that a manifest names. Its models are opened from a folder, proved, explained, and have a task API.

    Attributes:
        decodes: whether the engine decodes step by step; otherwise a model answers with one call.
        takes_files: whether the body of a task API request may be a file.
        answers_lists: whether the answer of the task API is a list with an element for each input.
        hub_request: message of a task API request.
        hub_answer: message of the answer to one input.
        example: arguments of curl that try a model of this task; None: the message at the start shows none.
        pads_rows: whether rows of different length share a call. If not, the shapes of a call follow from its rows.
        golden_searches: names of the searches that answer each golden example; the canary uses the first.
        attention_outputs: attention outputs of the explanation graph by the name that requests use, the default first.
    """

    decodes: ClassVar[bool]
    takes_files: ClassVar[bool]
    answers_lists: ClassVar[bool]
    hub_request: ClassVar[type[msgspec.Struct]]
    hub_answer: ClassVar[Any]
    example: ClassVar[str | None]
    pads_rows: ClassVar[bool]
    golden_searches: ClassVar[Sequence[str]]
    attention_outputs: ClassVar[Mapping[str, str]]

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model.

        Args:
            files: the model folder.
            graph_inputs: names of the graph's inputs; empty for a task that decodes.

        Raises:
            TaskError: the files do not describe a model of this task.
        """

    @classmethod
    def padding(cls, files: TaskFiles) -> Padding | None:
        """Return how calls on a GPU are padded; None: they are not."""

    @property
    def max_length(self) -> int:
        """Longest row in tokens; 1 where all rows have one size."""

    def probe_item(self, items: Sequence[Any], length: int) -> Any:
        """Make an item of so many tokens from golden items, to measure what a call costs."""

    def golden_item(self, example: Example, search: str) -> Any:
        """Prepare a golden example.

        Raises:
            TaskError: it becomes another tensor than in training.
            InvalidRequest: it cannot be prepared.
            KeyError: the example lacks the input of this task.
        """

    def golden_difference(self, example: Example, result: Any, tolerance: Tolerance, search: str) -> float:
        """Return by how much a result differs from the golden one.

        Raises:
            TaskError: by more than the tolerance, or it is another answer.
        """

    def check_example(self, example: Example) -> None:
        """Check that a golden example has an answer of this task's form.

        Raises:
            TaskError: the answer has another form.
        """

    def read_hub(self, request: Any) -> HubCall:
        """Read a request of the task API: a `hub_request`, or the file that is its body.

        Raises:
            InvalidRequest: a parameter is not offered or lies outside its limits.
        """

    def hub_document(self, answer: Any) -> Any:
        """Make the task API's answer for one input."""


class Collating(Protocol):
    """A task whose items are computed by one engine call."""

    def collate(self, items: Sequence[Any]) -> Arrays:
        """Batch items into the feeds of one engine call."""

    def split_batch(self, outputs: Arrays, items: Sequence[Any]) -> Sequence[Any]:
        """Split the outputs of a call into the result of each item."""


class CollatedTask(Task[Any], Collating, Protocol):
    """A task whose models answer with one engine call."""


class OneCallTask(StoredTask[Any], Collating, Protocol):
    """A task of the table whose models answer with one engine call."""
