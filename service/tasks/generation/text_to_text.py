"""Summarization and text2text-generation: the tasks that are served as translation is, under names of their own."""

from typing import Any, ClassVar

import msgspec

from service.tasks.hub_messages import (
    GeneratedText,
    SummarizationRequest,
    SummaryText,
    Text2TextGenerationRequest,
)
from service.tasks.translation import Translation

# A task without languages takes the options of `Translation` but these.
_OPTIONS = Translation.request_options - {"src_lang", "tgt_lang"}


class Summarization(Translation):
    """Preprocessing and postprocessing of a model that summarizes."""

    name: ClassVar[str] = "summarization"
    accepts: ClassVar[str] = "texts, and gives summaries"
    text_output: ClassVar[str] = "summary"
    request_options: ClassVar[frozenset[str]] = _OPTIONS
    hub_request: ClassVar[type[msgspec.Struct]] = SummarizationRequest
    hub_answer: ClassVar[Any] = SummaryText


class Text2TextGeneration(Translation):
    """Preprocessing and postprocessing of a model that makes a text of a text."""

    name: ClassVar[str] = "text2text-generation"
    accepts: ClassVar[str] = "texts, and gives generated texts"
    text_output: ClassVar[str] = "generated_text"
    request_options: ClassVar[frozenset[str]] = _OPTIONS
    hub_request: ClassVar[type[msgspec.Struct]] = Text2TextGenerationRequest
    hub_answer: ClassVar[Any] = GeneratedText
