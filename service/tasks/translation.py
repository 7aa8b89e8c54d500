"""Text to text: preprocessing and postprocessing around the graphs of a translation model.

    text ── tokenizer ──> ids ──> encoder ──> ┌─> decoder step ──> likeliest next tokens ─┐ ── tokenizer ──> text
                                              └──── Search.advance: which rows go on <────┘

The search in between is in `decoding/search.py`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from tokenizers import Tokenizer

from service.errors import InvalidRequest
from service.tasks.decoding.constrained_search import reads_normalizers
from service.tasks.decoding.languages import Direction, Languages
from service.tasks.decoding.search import (
    DEFAULT_SEARCH,
    GOLDEN_SEARCHES,
    MODEL_DEFAULTS,
    SearchDefaults,
    SearchOptions,
    SearchRequest,
    longest_translation,
)
from service.tasks.decoding.sentence import Forced, Sentence
from service.tasks.decoding.settings import GenerationConfig, LanguageCodes, TranslationConfig
from service.tasks.decoding.source_text import Frame, SourceEncoder
from service.tasks.explainable import TextParts, ValueFunction, refuse_target
from service.tasks.generation.explained_text import explained_values, translation_row
from service.tasks.hub_messages import (
    GenerationParameters,
    GenerationRequest,
    TranslatedText,
    TranslationRequest,
    inputs_and_field,
    whole,
)
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, HubCall, Padding, TaskError, TaskFiles, Tolerance
from service.tasks.task import (
    DEFAULT_ANSWER,
    NO_GENERATION_OPTIONS,
    AnswerOptions,
    GenerationOptions,
    Preparation,
    PrepareOptions,
    RequestLimits,
    check_num_rows,
)
from service.tasks.text.tokenization import TOKENIZER, TextEncoder, texts_of, tokenization
from service.tensors import Arrays, TensorSpec, bytes_array

TARGET_TOKENIZER = "target_tokenizer.json"
INCOMPLETE = "\ufffd"  # decoded from a character of which some bytes are still missing


class Translated(NamedTuple):
    """The answer for one text; `score` is its log probability divided by length**length_penalty."""

    text: str
    score: float
    num_tokens: int


class Translation:
    """Preprocessing and postprocessing of a translation model."""

    name: ClassVar[str] = "translation"
    accepts: ClassVar[str] = "texts, and gives translations"
    input_field: ClassVar[str] = "text[{}]"
    text_output: ClassVar[str] = "translation"
    request_options: ClassVar[frozenset[str]] = frozenset(
        {"truncate", "num_beams", "max_new_tokens", "length_penalty", *GenerationOptions._fields}
    )
    elements_are_rows: ClassVar[bool] = True
    decodes: ClassVar[bool] = True
    takes_files: ClassVar[bool] = False
    answers_lists: ClassVar[bool] = True
    hub_request: ClassVar[type[msgspec.Struct]] = TranslationRequest
    hub_answer: ClassVar[Any] = TranslatedText
    example: ClassVar[str | None] = None
    pads_rows: ClassVar[bool] = True
    golden_searches: ClassVar[Sequence[str]] = tuple(GOLDEN_SEARCHES)
    attention_outputs: ClassVar[Mapping[str, str]] = {"cross": "cross_attention", "encoder": "encoder_attention"}
    optional_inputs: tuple[TensorSpec, ...] = ()
    labels: Sequence[str] = ()
    inputs = (TensorSpec("text", "BYTES", (-1,)),)

    def __init__(
        self,
        tokenizer_json: str,
        *,
        max_tokens: int,
        bos_id: int,
        eos_id: int,
        source_language: str,
        target_language: str,
        target_tokenizer_json: str | None = None,
        defaults: SearchDefaults = MODEL_DEFAULTS,
        language_codes: LanguageCodes | None = None,
        languages: Languages | None = None,
        vocab_size: int | None = None,
        has_log_normalizers: bool = False,
    ) -> None:
        """Set up from the contents of a model folder.

        Args:
            tokenizer_json: contents of `tokenizer.json`; encoded texts end with the end-of-sentence token.
            max_tokens: longest source and longest translation, including special tokens.
            bos_id: first token of every translation, which is not part of its text.
            eos_id: the end-of-sentence token.
            source_language: a language code such as "en".
            target_language: a language code such as "de".
            target_tokenizer_json: the tokenizer of translations, if it is another one.
            defaults: search settings that apply where a client gives none.
            language_codes: codes at the beginning of a text that choose the target language, if the model has any.
            languages: the languages that requests may choose; None for the pair of `source_language` and
                `target_language` alone.
            vocab_size: number of tokens that the decoder step knows, if they are not those of the tokenizer.
            has_log_normalizers: whether the decoder step has this output, which a repetition penalty needs.
        """
        self.defaults, self._has_log_normalizers = defaults, has_log_normalizers
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._source = SourceEncoder(self._encoder, language_codes)
        self._languages = languages or Languages(source_language, target_language)
        self._decoding = Tokenizer.from_str(target_tokenizer_json) if target_tokenizer_json else self._encoder.tokenizer
        self.max_tokens, self._bos_id, self._eos_id = max_tokens, bos_id, eos_id
        self.source_language, self.target_language = source_language, target_language
        self._vocab_size = vocab_size or self._decoding.get_vocab_size()
        self.outputs = (TensorSpec(self.text_output, "BYTES", (-1,)), TensorSpec("score", "FP32", (-1,)))

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str] = ()) -> Self:  # noqa: ARG003, the engine knows them
        """Set up the task of a model from its folder: tokenizers, languages and search settings."""
        tokenizer_json = files.text(TOKENIZER)
        if tokenizer_json is None:
            raise TaskError(f"{TOKENIZER} is missing")
        config = files.config("config.json", TranslationConfig)
        for name in ("source_language", "target_language") if "src_lang" in cls.request_options else ():
            if not getattr(config, name):
                raise TaskError(f"config.json: {name} is missing")
        generation = files.config("generation_config.json", GenerationConfig)
        return cls(
            tokenizer_json,
            max_tokens=files.max_tokens,
            bos_id=generation.decoder_start_token_id,
            eos_id=generation.eos_id,
            source_language=config.source_language,
            target_language=config.target_language,
            target_tokenizer_json=files.text(TARGET_TOKENIZER),
            defaults=generation.defaults(files.max_tokens),
            language_codes=config.codes(),
            languages=languages_of(config),
            vocab_size=config.vocab_size,
            has_log_normalizers=config.log_normalizers,
        )

    @classmethod
    def padding(cls, files: TaskFiles) -> Padding | None:  # noqa: ARG003, see below
        """Return None: a decoder has batches of its own."""
        return None

    @property
    def max_length(self) -> int:
        """Longest source and longest translation, in tokens."""
        return self.max_tokens

    @property
    def explainable(self) -> Self:
        """The task itself: words of the source can be taken away."""
        return self

    def max_inputs(self, max_request_rows: int) -> int:
        """Return the limit on rows, divided among the beams that each text has by default."""
        return max_request_rows // self.defaults.num_beams

    def read(self, inputs: Arrays) -> list[str]:
        """Return the texts of the tensor `text`."""
        return texts_of(inputs)

    def prepare(
        self,
        inputs: Sequence[str],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Check the search settings, and plan the tokenization of texts."""
        more = options.generation or NO_GENERATION_OPTIONS
        request = SearchRequest.of(options)
        request.check(self.max_tokens)
        direction = self._languages.choose(more.src_lang, more.tgt_lang)
        beams = request.num_beams or self.defaults.num_beams
        if beams > limits.max_batch_rows:
            limit = limits.max_batch_rows
            raise InvalidRequest(f"num_beams is {beams}, the server's limit is {limit} (max_batch_rows)")
        check_num_rows(len(inputs), limits.max_request_rows, "texts", beams)
        return tokenization(
            inputs,
            partial(self.preprocess_all, truncate=options.truncate, field=field, request=request, direction=direction),
        )

    def preprocess(self, text: str, *, truncate: bool, field: str, request: SearchRequest = DEFAULT_SEARCH) -> Sentence:
        """Tokenize a text into a sentence to decode; see `preprocess_all`."""
        return self.preprocess_all([text], truncate=truncate, field=field, request=request)[0]

    def preprocess_all(
        self,
        texts: Sequence[str],
        *,
        truncate: bool,
        field: str,
        first: int = 0,
        request: SearchRequest = DEFAULT_SEARCH,
        direction: Direction | None = None,
    ) -> list[Sentence]:
        """Tokenize texts into sentences to decode; takes search settings and the arguments of `TextEncoder.encode`.

        Without `direction`, the languages are the model's own.

        Raises:
            InvalidRequest: a text is empty or too long, or a search parameter lies outside its limits.
        """
        request.check(self.max_tokens)
        direction = direction or self._languages.default
        return [
            Sentence(
                ids,
                self._options(request, len(ids), direction.first_id),
                bos_id=self._bos_id if direction.begin_id is None else direction.begin_id,
                eos_id=self._eos_id,
                truncated=truncated,
                vocab_size=self._vocab_size,
                frame=direction.frame,
            )
            for ids, truncated in self._source.encode(
                texts, direction.frame, truncate=truncate, field=field, first=first
            )
        ]

    def spans(self, text: str, *, truncate: bool, frame: Frame | None = None) -> list[tuple[int, int] | None]:
        """Locate each token in a text that was preprocessed; see `SourceEncoder.spans`."""
        return self._source.spans(text, frame or self._languages.default.frame, truncate=truncate)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the source tokenizer's name of each token."""
        return self._encoder.names(ids)

    def tokens_of(self, sentence: Sentence) -> list[int]:
        """Return the translation of a finished sentence, with its end-of-sentence token if the model wrote one."""
        ids = sentence.search.best().ids
        # A translation of the maximum length was cut off. Any other ended by itself, one token later.
        return ids if len(ids) == sentence.options.max_new_tokens else self.ended(ids)

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Append the end-of-sentence token."""
        return [*ids, self._eos_id]

    def forced(self, ids: list[int], target_ids: Sequence[int], bos_id: int | None = None) -> Forced:
        """Make an item that computes the log probability of a given translation of a source."""
        bos_id = self._bos_id if bos_id is None else bos_id
        return Forced(ids, target_ids, bos_id=bos_id, num_candidates=self._vocab_size)

    def _options(self, request: SearchRequest, source_tokens: int, first_id: int | None = None) -> SearchOptions:
        bound = longest_translation(source_tokens, self.max_tokens)
        most = request.max_new_tokens or (None if request.bounded else self.defaults.max_new_tokens) or bound
        constraints = request.constraints(self.defaults.constraints, first_id)
        options = SearchOptions(
            max_new_tokens=min(most, bound) if request.bounded else most,
            num_beams=request.num_beams or self.defaults.num_beams,
            length_penalty=self.defaults.length_penalty if request.length_penalty is None else request.length_penalty,
            early_stopping=self.defaults.early_stopping,
            constraints=constraints,
        )
        if not self._has_log_normalizers and reads_normalizers(options):
            raise InvalidRequest(
                "repetition_penalty needs a model that was converted by this version, or num_beams above 1"
            )
        return options

    def token_name(self, token: int) -> str:
        """Return the target tokenizer's name of a token."""
        return str(self._decoding.id_to_token(token))

    def text_so_far(self, ids: list[int]) -> str:
        """Decode the first tokens of a translation, without a last character that is incomplete."""
        return self.text_of(ids).rstrip(INCOMPLETE)

    def text_of(self, ids: list[int]) -> str:
        """Decode a whole translation."""
        return str(self._decoding.decode(ids))

    def finish(self, result: Sentence, options: AnswerOptions = DEFAULT_ANSWER) -> Translated:
        """Make the answer for a finished sentence."""
        ids, score = result.search.best()
        return Translated(self.text_of(ids), score, len(ids))

    def to_tensors(self, results: Sequence[Sentence]) -> Arrays:
        """Make the output tensors of n results, as the metadata describes them."""
        translated = [self.finish(sentence) for sentence in results]
        return {
            self.text_output: bytes_array([each.text.encode() for each in translated]),
            "score": np.array([each.score for each in translated], dtype=np.float32),
        }

    def probe_item(self, items: Sequence[Sentence], length: int) -> Sentence:
        """Make a greedy sentence of one row, whatever the number of beams of the model's own search."""
        options = self._options(GOLDEN_SEARCHES["greedy"], len(items[0].ids))
        return Sentence(items[0].ids, options, bos_id=items[0].bos_id, eos_id=self._eos_id, truncated=False)

    def check_example(self, example: Example) -> None:
        """Accept any golden example; a missing translation differs from every other."""

    def golden_item(self, example: Example, search: str) -> Sentence:
        """Tokenize a golden example into a sentence that one of `GOLDEN_SEARCHES` translates.

        Raises:
            TaskError: it becomes other ids than in training.
        """
        request = GOLDEN_SEARCHES[search]
        sentence = self.preprocess(example.inputs["text"], truncate=False, field="text", request=request)
        if sentence.ids != example.tensors["input_ids"]:
            raise TaskError("the tokenizer gives other ids than in training")
        return sentence

    def golden_difference(self, example: Example, result: Sentence, tolerance: Tolerance, search: str) -> float:
        """Compare the score of a translation, its length-normalised log probability, with the golden score.

        The texts are not compared, because rounding may swap two translations that are almost equally likely.

        Raises:
            TaskError: the scores differ by more than the tolerance.
        """
        (golden,) = example.outputs.get(search, [np.nan])[:1]
        off_by, allowed = float(abs(result.search.best().score - golden)), tolerance.max_abs_logit_difference
        if not off_by <= allowed:
            raise TaskError(f"the score differs by {off_by:.3g}, the manifest allows {allowed:g}")
        return off_by

    def read_hub(self, request: GenerationRequest) -> HubCall:
        """Read a request of the task API.

        Raises:
            InvalidRequest: a parameter is not offered.
        """
        parameters = request.parameters or GenerationParameters()
        search, streams = parameters.search, request.check_stream()
        search.check(self.defaults.early_stopping, 1 if streams else self.defaults.num_beams)
        texts, field = inputs_and_field(request.inputs)
        return HubCall(
            texts,
            field,
            truncate=parameters.truncate,
            num_beams=whole("num_beams", search.num_beams),
            max_new_tokens=search.most(self.max_tokens),
            length_penalty=search.length_penalty,
            generation=search.generation(getattr(parameters, "src_lang", None), getattr(parameters, "tgt_lang", None)),
            explain=parameters.explain,
            stream=streams,
        )

    def hub_document(self, answer: Translated) -> dict[str, object]:
        """Make the task API's answer for one text."""
        return {self.hub_answer.__struct_fields__[0]: answer.text}

    def parts(
        self, given: str, item: Sentence, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split a source into its tokens and their places."""
        spans = self.spans(given, truncate=truncate, frame=item.frame)
        return TextParts(given, item.ids, spans, self.names(item.ids))

    target_of = refuse_target

    def value_function(self, item: Sentence, result: Sentence, target: int | None) -> ValueFunction:
        """Return the log probabilities of the translation's tokens as a function of the source tokens that are kept."""
        return explained_values(self, item, result)

    def golden_row(self, item: Sentence, example: Example, target: int | None) -> Arrays:
        """Make the explanation graph's input for a golden example: its greedy translation."""
        written = example.tensors["greedy"]
        assert not isinstance(written, str)
        return translation_row(item.ids, self.ended(written)[: self.max_tokens])


def languages_of(config: TranslationConfig) -> Languages:
    """Set up the languages of a model from its `config.json`.

    Raises:
        TaskError: its own languages are not among those that it lists.
    """
    try:
        return Languages.of(config)
    except InvalidRequest as error:
        raise TaskError(f"config.json: {error}") from error
