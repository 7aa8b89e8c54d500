"""Messages of the Hugging Face task API: the forms of requests, and functions that make answers.

The HTTP server and the TorchServe handler (`export/torchserve/handler.py`) share this module, which knows neither the
wire nor the models.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from service.errors import InvalidRequest, Malformed
from service.tasks.parameters import NEUTRAL, check_neutral, foreign_parameter
from service.tasks.task import NO_GENERATION_OPTIONS, AnswerOptions, GenerationOptions, ScoreFunction
from service.tensors import whole_number

HUB_TOP_K = 5  # the hub's default number of classes of an image

# An integer, which some languages write as a float (5.0).
Whole = int | float
PositiveWhole = Annotated[int, msgspec.Meta(ge=1)] | Annotated[float, msgspec.Meta(ge=1)]
# The hub's names of strategies, and their names in Python's enumerations.
Truncation = Literal[
    "do_not_truncate",
    "longest_first",
    "only_first",
    "only_second",
    "DO_NOT_TRUNCATE",
    "LONGEST_FIRST",
    "ONLY_FIRST",
    "ONLY_SECOND",
]
Function = Literal["softmax", "sigmoid", "none", "SOFTMAX", "SIGMOID", "NONE"]
SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "none"}
# Strategies that cut the only text of an input; `only_second` would cut the second text of a pair, which none has.
CUTTING = ("longest_first", "only_first")
SEARCH_SETTINGS = (
    "num_beams",
    "max_new_tokens",
    "length_penalty",
    "early_stopping",
    "max_length",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
UNKNOWN_FIELD = re.compile("unknown field `([^`]*)`")  # in msgspec's errors
T = TypeVar("T")


class HubOptions(msgspec.Struct):
    """`options` of the hub's own service for queueing and caching; accepted and ignored."""


class ExplainParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`explain` among the parameters: asks for the weight of each part of the input with the answer."""

    method: str | None = None
    target: str | None = None
    n_samples: Whole | None = None
    seed: Whole | None = None
    part: str | None = None
    layer: Whole | None = None
    head: Whole | None = None


class LabelScore(msgspec.Struct, omit_defaults=True):
    """A class and its score; `predicted` says whether the score of a class reaches its threshold, if it has one."""

    label: str
    score: float
    predicted: bool | msgspec.UnsetType = msgspec.UNSET


class TranslatedText(msgspec.Struct):
    """The translation of one text."""

    translation_text: str


class SummaryText(msgspec.Struct):
    """The summary of one text."""

    summary_text: str


class GeneratedText(msgspec.Struct):
    """The text that a model makes of one text."""

    generated_text: str


class ClassificationParameters(msgspec.Struct, forbid_unknown_fields=True):
    """What the parameters of both classification tasks have in common; clients may send null for any of them."""

    top_k: PositiveWhole | None = None
    function_to_apply: Function | None = None
    explain: ExplainParameters | None = None

    def answer_options(self, default_top_k: int | None = None) -> AnswerOptions:
        """Return how logits become the answer.

        Raises:
            InvalidRequest: `top_k` is no integer.
        """
        function = None if self.function_to_apply is None else SCORE_FUNCTIONS[self.function_to_apply.lower()]
        return AnswerOptions(function, whole("top_k", self.top_k) or default_top_k)


class TextClassificationParameters(ClassificationParameters):
    """`parameters` of the Hugging Face text-classification task."""

    truncation: bool | Truncation | None = None


class TextPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two texts that a model reads together."""

    text: str
    text_pair: str


class TextClassificationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face text-classification task."""

    inputs: str | TextPair | list[str | TextPair]
    parameters: TextClassificationParameters | None = None
    stream: bool | None = None
    options: HubOptions | None = None


class ImageClassificationParameters(ClassificationParameters):
    """`parameters` of the Hugging Face image-classification task."""


class ImageClassificationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face image-classification task as JSON.

    `inputs` is the image in base64, or a data URL of it.
    """

    inputs: str
    parameters: ImageClassificationParameters | None = None
    stream: bool | None = None
    options: HubOptions | None = None


class SearchParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Settings of the search for a translation, with the names of Hugging Face's generation.

    Those of `NEUTRAL` and `early_stopping` are accepted only with values that change nothing.
    """

    num_beams: Whole | None = None
    max_new_tokens: Whole | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    max_length: Whole | None = None
    diversity_penalty: float | None = None
    do_sample: bool | None = None
    encoder_no_repeat_ngram_size: Whole | None = None
    encoder_repetition_penalty: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    min_length: Whole | None = None
    min_new_tokens: Whole | None = None
    no_repeat_ngram_size: Whole | None = None
    num_beam_groups: Whole | None = None
    num_return_sequences: Whole | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    repetition_penalty: float | None = None
    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    typical_p: float | None = None
    use_cache: bool | None = None

    def check(self, own_early_stopping: bool | str, own_beams: int) -> None:
        """Check the settings that are accepted only where they change nothing.

        Args:
            own_early_stopping: the model's own setting.
            own_beams: the number of beams where the request names none.

        Raises:
            InvalidRequest: names the parameter and what is offered.
        """
        check_neutral({name: getattr(self, name) for name in NEUTRAL})
        stopping, beams = self.early_stopping, own_beams if self.num_beams is None else self.num_beams
        if stopping is not None and beams > 1 and stopping != own_early_stopping:
            raise InvalidRequest(
                f"parameter 'early_stopping' is {stopping!r}; with beams only the model's own is offered,"
                f" {own_early_stopping!r}"
            )

    def most(self, max_tokens: int) -> int | None:
        """Return `max_new_tokens`; from `max_length`, which counts the begin token, if only that is given.

        Args:
            max_tokens: longest answer of the model; a larger `max_length` changes nothing.

        Raises:
            InvalidRequest: `max_length` leaves no room for a token.
        """
        longest = whole("max_length", self.max_length)
        if self.max_new_tokens is not None or longest is None:
            return whole("max_new_tokens", self.max_new_tokens)
        if longest < 2:
            raise InvalidRequest(f"parameter 'max_length' must be at least 2, not {longest}: it counts the begin token")
        return min(longest - 1, max_tokens)

    def generation(self, src_lang: str | None, tgt_lang: str | None) -> GenerationOptions | None:
        """Return the settings that few requests have, with the languages of the request; None if there is none."""
        least = whole("min_new_tokens", self.min_new_tokens)
        if least is None and (shortest := whole("min_length", self.min_length)) is not None:
            least = max(shortest - 1, min(shortest, 0))  # `min_length` counts the begin token
        options = GenerationOptions(
            least,
            whole("no_repeat_ngram_size", self.no_repeat_ngram_size),
            self.repetition_penalty,
            src_lang,
            tgt_lang,
        )
        return None if options == NO_GENERATION_OPTIONS else options


class GenerationParameters(SearchParameters):
    """`parameters` that the tasks from text to text have in common; the search may be in `generate_parameters`."""

    truncation: bool | Truncation | None = None
    generate_parameters: SearchParameters | None = None
    clean_up_tokenization_spaces: bool | None = None
    explain: ExplainParameters | None = None

    @property
    def truncate(self) -> bool:
        """Whether a text that is too long may be truncated."""
        return truncates(self.truncation)

    @property
    def search(self) -> SearchParameters:
        """The search settings, from whichever place they are given in.

        Raises:
            InvalidRequest: both places have settings, or a setting is not offered.
        """
        if self.clean_up_tokenization_spaces:
            raise InvalidRequest("clean_up_tokenization_spaces is not offered: answers are written as they are")
        if self.generate_parameters is None:
            return self
        check_neutral({name: getattr(self, name) for name in NEUTRAL})
        if any(getattr(self, name) is not None for name in SEARCH_SETTINGS):
            raise InvalidRequest("the search is given both in parameters and in generate_parameters; use one of them")
        return self.generate_parameters


class TranslationParameters(GenerationParameters):
    """`parameters` of the Hugging Face translation task."""

    src_lang: str | None = None
    tgt_lang: str | None = None


class GenerationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of a task from text to text; with `stream`, the answer is sent as server-sent events."""

    inputs: str | list[str]
    parameters: GenerationParameters | None = None
    stream: bool | None = None
    options: HubOptions | None = None

    def check_stream(self) -> bool:
        """Return whether the answer is sent piece by piece.

        Raises:
            InvalidRequest: the request has several texts, or asks for an explanation too.
        """
        if not self.stream:
            return False
        if not isinstance(self.inputs, str):
            raise InvalidRequest("inputs must be one text where stream is true")
        if self.parameters is not None and self.parameters.explain is not None:
            raise InvalidRequest("explain is not offered where stream is true")
        return True


class TranslationRequest(GenerationRequest):
    """A request of the Hugging Face translation task."""

    parameters: TranslationParameters | None = None


class SummarizationRequest(GenerationRequest):
    """A request of the Hugging Face summarization task."""


class Text2TextGenerationRequest(GenerationRequest):
    """A request of the Hugging Face text2text-generation task."""


def refuse_stream(request: TextClassificationRequest | ImageClassificationRequest) -> None:
    """Refuse to stream the answer of a classifier, which has no pieces.

    Raises:
        InvalidRequest: the request has `stream`.
    """
    if request.stream:
        raise InvalidRequest("parameter 'stream' belongs to translation; the answer of a classifier has no pieces")


def whole(name: str, value: float | None) -> int | None:
    """Return an integer parameter, which may be written as a float.

    Raises:
        InvalidRequest: it has a fraction, or is too large for a float to be exact.
    """
    if value is None:
        return None
    if (number := whole_number(value)) is None:
        raise InvalidRequest(f"parameter {name!r} must be an integer, not {value!r}")
    return number


def truncates(truncation: bool | Truncation | None) -> bool:
    """Whether a text that is too long may be truncated, by the parameter `truncation`."""
    return truncation is True or (isinstance(truncation, str) and truncation.lower() in CUTTING)


def read_json(body: bytes | memoryview, kind: type[T], whose: str = "") -> T:
    """Decode a JSON body into a message.

    Args:
        body: the JSON.
        kind: type of the message.
        whose: the model that was asked, with its task, for the error of a parameter that belongs to another task.

    Raises:
        Malformed: the body is not JSON, or not of this form; says what is wrong and where.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        if whose and (unknown := UNKNOWN_FIELD.search(text)):
            text = foreign_parameter(unknown[1], whose) or text
        raise Malformed(text) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Malformed("the body is not JSON that can be read: it is nested too deeply") from None


def is_json(body: bytes) -> bool:
    """Whether a body is a JSON object and not an image file.

    The first byte decides, because clients guess the content type or leave it out.
    """
    return body.lstrip()[:1] == b"{"


def inputs_and_field(inputs: Any) -> tuple[list[Any], str]:
    """Return the inputs as a list, and the name of an input for messages."""
    return (inputs, "inputs[{}]") if isinstance(inputs, list) else ([inputs], "inputs")


def labelled_scores(
    labels: Sequence[str], scores: Sequence[float], predicted: Sequence[bool] | None = None
) -> list[dict[str, object]]:
    """Make the answer for one classified input."""
    answer: list[dict[str, object]] = [
        {"label": label, "score": score} for label, score in zip(labels, scores, strict=True)
    ]
    if predicted is not None:
        for entry, each in zip(answer, predicted, strict=True):
            entry["predicted"] = each
    return answer


def stream_end(document: dict[str, object], score: float, num_tokens: int) -> dict[str, object]:
    """Make the last event of a stream: the whole answer. A stream is always decoded greedily."""
    return document | {"score": score, "num_tokens": num_tokens, "num_beams": 1}
