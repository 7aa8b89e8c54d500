"""Messages of the Hugging Face task API: the forms of requests, and functions that make answers.

The HTTP server and the TorchServe handler (`export/torchserve/handler.py`) share this module, which knows neither the
wire nor the models.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from service.errors import InvalidRequest
from service.tasks.task import ScoreFunction

HUB_TOP_K = 5  # the hub's default number of classes of an image

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Truncation = Literal["do_not_truncate", "longest_first", "only_first"]
T = TypeVar("T")


class HubOptions(msgspec.Struct):
    """`options` of the hub's own service for queueing and caching; accepted and ignored."""


class ExplainParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`explain` among the parameters: asks for the weight of each part of the input with the answer."""

    method: str | None = None
    target: str | None = None
    n_samples: int | None = None
    seed: int | None = None
    part: str | None = None
    layer: int | None = None
    head: int | None = None


class LabelScore(msgspec.Struct):
    """A class and its score."""

    label: str
    score: float


class TranslatedText(msgspec.Struct):
    """The translation of one text."""

    translation_text: str


class TextClassificationParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face text-classification task; clients may send null for any of them."""

    top_k: PositiveInt | None = None
    function_to_apply: ScoreFunction | None = None
    truncation: bool = False
    explain: ExplainParameters | None = None


class TextClassificationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face text-classification task."""

    inputs: str | list[str]
    parameters: TextClassificationParameters = msgspec.field(default_factory=TextClassificationParameters)
    options: HubOptions = msgspec.field(default_factory=HubOptions)


class ImageClassificationParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face image-classification task."""

    top_k: PositiveInt | None = None
    function_to_apply: ScoreFunction | None = None
    explain: ExplainParameters | None = None


class ImageClassificationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face image-classification task as JSON; `inputs` is the image in base64."""

    inputs: str
    parameters: ImageClassificationParameters = msgspec.field(default_factory=ImageClassificationParameters)
    options: HubOptions = msgspec.field(default_factory=HubOptions)


class SearchParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Settings of the search for a translation, with the names of Hugging Face's generation."""

    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None


class TranslationParameters(SearchParameters):
    """`parameters` of the Hugging Face translation task; search settings may be in `generate_parameters` instead."""

    src_lang: str | None = None
    tgt_lang: str | None = None
    truncation: bool | Truncation | None = None
    generate_parameters: SearchParameters | None = None
    clean_up_tokenization_spaces: bool | None = None
    explain: ExplainParameters | None = None

    @property
    def truncate(self) -> bool:
        """Whether a text that is too long may be truncated."""
        return self.truncation in (True, "longest_first", "only_first")

    def search(self) -> SearchParameters:
        """Return the search settings from whichever place they are given in.

        Raises:
            InvalidRequest: both places have settings, or a setting is not offered.
        """
        if self.clean_up_tokenization_spaces:
            raise InvalidRequest("clean_up_tokenization_spaces is not offered: translations are written as they are")
        if self.generate_parameters is None:
            return self
        if any(getattr(self, name) is not None for name in SearchParameters.__struct_fields__):
            raise InvalidRequest("the search is given both in parameters and in generate_parameters; use one of them")
        return self.generate_parameters


class TranslationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face translation task; with `stream`, the answer is sent as server-sent events."""

    inputs: str | list[str]
    parameters: TranslationParameters = msgspec.field(default_factory=TranslationParameters)
    stream: bool = False
    options: HubOptions = msgspec.field(default_factory=HubOptions)


def read_json(body: bytes | memoryview, kind: type[T]) -> T:
    """Decode a JSON body into a message.

    Raises:
        InvalidRequest: the body is not JSON, or not of this form; says what is wrong and where.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is not JSON that can be read: it is nested too deeply") from None


def is_json(body: bytes) -> bool:
    """Whether a body is a JSON object and not an image file.

    The first byte decides, because clients guess the content type or leave it out.
    """
    return body.lstrip()[:1] == b"{"


def texts_and_field(inputs: str | list[str]) -> tuple[list[str], str]:
    """Return the texts as a list, and the name of a text for messages."""
    return ([inputs], "inputs") if isinstance(inputs, str) else (inputs, "inputs[{}]")


def labelled_scores(labels: Sequence[str], scores: Sequence[float]) -> list[dict[str, object]]:
    """Make the answer for one classified input."""
    return [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]


def translation_text(text: str) -> dict[str, object]:
    """Make the answer for one translated text."""
    return {"translation_text": text}


def stream_end(text: str, score: float, num_tokens: int) -> dict[str, object]:
    """Make the last event of a stream: the whole translation. A stream is always decoded greedily."""
    return translation_text(text) | {"score": score, "num_tokens": num_tokens, "num_beams": 1}
