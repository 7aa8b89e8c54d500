"""Fill-mask: the task of masked language models, which say what may stand in a gap of a text.

    text with [MASK] ── tokenizer ──> one row a mask, marked in `answer_mask` ──> graph ──> logits of that token alone
        ──> the likeliest tokens, or those of `targets`

Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3.1. The graph computes the vocabulary's logits of the marked
token alone: those of all tokens would be V numbers for each.

Shapes: B rows, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.explainable import TextParts, ValueFunction, refuse_target
from service.tasks.hub_messages import (
    ExplainParameters,
    HubOptions,
    PositiveWhole,
    Truncation,
    inputs_and_field,
    truncates,
    whole,
)
from service.tasks.stored_task import Example, HubCall, TaskError, TaskFiles
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions
from service.tasks.text.rows import RowResults, RowsTask, TextRows
from service.tasks.text.tokenization import characters_of, texts_of
from service.tensors import Arrays, TensorSpec, bytes_array

ANSWER_MASK = "answer_mask"  # the graph's input that marks the token whose logits are computed
HUB_TOP_K = 5  # the hub's default
# What `clean_up_tokenization_spaces` of `transformers` replaces, in its order.
CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
           (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class FillMaskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`task.json` of a masked language model.

    Attributes:
        mask_token: the token that stands for a gap.
        cleans_up: whether spaces before punctuation are taken out of the text that tokens stand for.
    """

    mask_token: str
    cleans_up: bool = False


class MaskedText(NamedTuple):
    """A text with gaps.

    Attributes:
        text: the text, with the mask token in each gap.
        top_k: number of tokens in the answer.
        targets: texts whose first tokens alone are scored; None: the whole vocabulary.
    """

    text: str
    top_k: int = HUB_TOP_K
    targets: tuple[str, ...] | None = None


class Filling(msgspec.Struct, frozen=True):
    """A token that may stand in a gap: its probability, and the text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class FillMaskParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face fill-mask task."""

    top_k: PositiveWhole | None = None
    targets: str | list[str] | None = None
    truncation: bool | Truncation | None = None
    explain: ExplainParameters | None = None


class FillMaskRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face fill-mask task."""

    inputs: str | list[str]
    parameters: FillMaskParameters | None = None
    options: HubOptions | None = None


class FillMask(RowsTask):
    """Texts with gaps to the tokens that may stand there."""

    name: ClassVar[str] = "fill-mask"
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = FillMaskRequest
    hub_answer: ClassVar[Any] = list[Filling | list[Filling]]
    example: ClassVar[str | None] = """-d '{"inputs": "Paris is the [MASK] of France."}'"""
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    labels: Sequence[str] = ()
    outputs = (
        TensorSpec("token_str", "BYTES", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("token", "INT64", (-1,)),
        TensorSpec("fillings", "BYTES", (-1,)),
    )

    def __init__(
        self,
        tokenizer_json: str,
        *,
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
        settings: FillMaskSettings,
    ) -> None:
        """Set up; arguments are those of `TextEncoding`.

        Raises:
            TaskError: the tokenizer has no such mask token.
        """
        inputs = [name for name in graph_inputs if name != ANSWER_MASK]
        super().__init__(tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=inputs)
        self.settings = settings
        mask_id = self.encoder.tokenizer.token_to_id(settings.mask_token)
        if mask_id is None:
            raise TaskError(f"task.json: mask_token {settings.mask_token!r} is not a token of the tokenizer")
        self._mask_id: int = mask_id

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        return cls(**cls.arguments_of(files), graph_inputs=graph_inputs, settings=files.settings(FillMaskSettings))

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """None: a gap belongs to one text."""
        return ()

    @property
    def explainable(self) -> Self:
        """The task itself: words can be taken away."""
        return self

    def read(self, inputs: Arrays) -> Sequence[MaskedText]:
        """Return the texts of the tensor `text`."""
        return [MaskedText(text) for text in texts_of(inputs)]

    def characters_of(self, given: MaskedText) -> int:
        """Return the length of a text, weighted by what a character costs to tokenize."""
        return characters_of(given.text)

    def rows_of(self, given: MaskedText, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize a text to one row for each of its masks."""
        tokens = self.preprocess(given.text, truncate=truncate, field=field)
        places = [place for place, token in enumerate(tokens.ids) if token == self._mask_id]
        if not places:
            where = " in the part that is left of it" if tokens.truncated else ""
            raise InvalidRequest(f"{field} has no {self.settings.mask_token}{where}; it marks what is to be filled in")
        if len(places) > max_rows:
            raise InvalidRequest(f"{field} has {len(places)} masks, the limit is {max_rows} (max_batch_rows)")
        return TextRows([tokens] * len(places), given, places, tokens.truncated)

    def collate(self, items: Sequence[TextRows]) -> Arrays:
        """Batch the rows of all items; `answer_mask`, int64 [B, T], is 1 at the token whose logits are computed."""
        feeds = super().collate(items)
        marks_BT = np.zeros_like(feeds["input_ids"])
        places = [place for item in items for place in item.places or [0] * item.rows]
        marks_BT[np.arange(len(places)), places] = 1
        return feeds | {ANSWER_MASK: marks_BT}

    def finish(self, result: RowResults, options: AnswerOptions = DEFAULT_ANSWER) -> list[list[Filling]]:
        """Find the likeliest tokens for each gap of a text."""
        given: MaskedText = result.item.given
        targets = None if given.targets is None else self._ids_of(given.targets)
        ids, single = result.item.parts[0].ids, len(result.rows) == 1
        return [
            self._fillings(logits_V, given.top_k, targets, ids, place, single=single)
            for logits_V, place in zip(result.rows, result.item.places, strict=True)
        ]

    def _fillings(
        self,
        logits_V: NDArray[np.float32],
        top_k: int,
        targets: list[int] | None,
        ids: Sequence[int],
        place: int,
        *,
        single: bool,
    ) -> list[Filling]:
        """Return the likeliest tokens for the gap at a place of the ids."""
        weights_V = np.exp((logits_V - logits_V.max()).astype(np.float64))
        scores_V = weights_V / weights_V.sum()
        chosen = np.arange(len(scores_V)) if targets is None else np.array(targets)
        top_k = min(top_k, len(chosen))
        best = np.argpartition(-scores_V[chosen], top_k - 1)[:top_k]
        best = best[np.argsort(-scores_V[chosen][best], kind="stable")]
        fillings = []
        for token in chosen[best].tolist():
            filled = [*ids[:place], token, *ids[place + 1 :]]
            filled = [number for number in filled if number != self.pad_id]
            # Special tokens are left out, but further masks are shown.
            sequence = self._written(filled, skips_special=single)
            fillings.append(
                Filling(float(scores_V[token]), token, self._written([token], skips_special=False), sequence)
            )
        return fillings

    def _written(self, ids: Sequence[int], *, skips_special: bool) -> str:
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=skips_special))
        if self.settings.cleans_up:
            for found, written in CLEANED:
                text = text.replace(found, written)
        return text

    def _ids_of(self, targets: Sequence[str]) -> list[int]:
        """Return the token of each target, or the first of its tokens where it has several; `check_targets` holds."""
        return [*dict.fromkeys(token for each in targets if (token := self._id_of(each)) is not None)]

    def _id_of(self, target: str) -> int | None:
        known: int | None = self.encoder.tokenizer.token_to_id(target)
        if known is not None:
            return known
        ids = self.encoder.tokenizer.encode(target, add_special_tokens=False).ids
        return ids[0] if ids else None

    def to_tensors(self, results: Sequence[RowResults]) -> Arrays:
        """Make the output tensors of n texts: the likeliest token of the first gap, and all fillings as JSON."""
        answers = [self.finish(result) for result in results]
        best = [answer[0][0] for answer in answers]
        return {
            "token_str": bytes_array([each.token_str.encode() for each in best]),
            "score": np.array([each.score for each in best], dtype=np.float32),
            "token": np.array([each.token for each in best], dtype=np.int64),
            "fillings": bytes_array([msgspec.json.encode(self.hub_document(answer)) for answer in answers]),
        }

    def read_hub(self, request: FillMaskRequest) -> HubCall:
        """Read a request of the task API."""
        texts, field = inputs_and_field(request.inputs)
        parameters = request.parameters or FillMaskParameters()
        targets = parameters.targets
        chosen = None if targets is None else tuple([targets] if isinstance(targets, str) else targets)
        if chosen is not None and not self._ids_of(chosen):
            raise InvalidRequest("parameters.targets has no text that the model can read")
        top_k = whole("top_k", parameters.top_k) or HUB_TOP_K
        return HubCall(
            [MaskedText(text, top_k, chosen) for text in texts],
            field,
            truncate=truncates(parameters.truncation),
            explain=parameters.explain,
            document=partial(_document, self, single=not isinstance(request.inputs, list)),
        )

    def hub_document(self, answer: Sequence[Sequence[Filling]]) -> list[Any]:
        """Make the task API's answer for one text: a list of fillings, or one for each gap where there are several."""
        return [*answer[0]] if len(answer) == 1 else [*answer]

    def golden_given(self, example: Example) -> MaskedText:
        """Return the text of a golden example."""
        return MaskedText(example.inputs["text"])

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: MaskedText, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split the text into its tokens, of which the gaps always stay; a token is named by its place in the row."""
        ids = item.parts[0].ids
        spans = self.spans(given.text, truncate=truncate)
        kept = [None if token == self._mask_id else span for token, span in zip(ids, spans, strict=True)]
        return TextParts(given.text, [*range(len(ids))], kept, self.names(ids))

    target_of = refuse_target

    def value_function(self, item: TextRows, result: RowResults, target: int | None) -> ValueFunction:
        """Return the probability of the first gap's likeliest token as a function of the tokens that are kept."""
        best = self.finish(result)[0][0]
        ids, (place, *_) = item.parts[0].ids, item.places

        def item_of(kept: Sequence[int]) -> TextRows:
            return TextRows([self.part([ids[each] for each in kept])], item.given, [kept.index(place)])

        def values_of(part: RowResults) -> list[float]:
            weights_V = np.exp((part.rows[0] - part.rows[0].max()).astype(np.float64))
            return [float(weights_V[best.token] / weights_V.sum())]

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=[best.score],
            target=best.token_str,
            row=dict,
        )

    def golden_row(self, item: TextRows, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def _document(task: FillMask, answers: Sequence[Any], *, single: bool) -> Any:
    documents = [*map(task.hub_document, answers)]
    return documents[0] if single else documents
