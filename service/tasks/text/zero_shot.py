"""Zero-shot classification: the task of entailment models, which score labels that a request brings.

    text, labels ── one pair a label: the text, "This example is <label>." ──> graph ──> logits of entailment ──> scores

Yin et al. 2019, "Benchmarking Zero-shot Text Classification" (arXiv 1909.00161), section 5; the rules are those of the
pipeline of `transformers`. The pairs of a text are rows of one item, so that they share an engine call.

Shapes: R labels of a request, C classes of the model.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from service.errors import InvalidRequest
from service.tasks.classification import Classification
from service.tasks.explainable import TextParts, ValueFunction, class_number
from service.tasks.hub_messages import (
    ExplainParameters,
    HubOptions,
    LabelScore,
    Truncation,
    inputs_and_field,
    labelled_scores,
    truncates,
)
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, HubCall, TaskError, TaskFiles
from service.tasks.task import (
    DEFAULT_ANSWER,
    AnswerOptions,
    Preparation,
    PrepareOptions,
    RequestLimits,
)
from service.tasks.text.encoding import Tokens, part_of_pair
from service.tasks.text.rows import RowResults, RowsTask, TextRows
from service.tasks.text.tokenization import CHARACTERS_PER_TOKEN, TRUNCATE_HINT, Pair, characters_of, texts_of
from service.tensors import Arrays, TensorSpec, bytes_array

TEMPLATE = "This example is {}."
PLACE = "{}"  # of the label in a template
ENTAILMENT = "entail"  # the beginning of the name of the model's class, in lower case


class LabelledText(NamedTuple):
    """A text with the labels to score.

    Attributes:
        text: the text.
        labels: the labels.
        template: the hypothesis that a label makes; `{}` becomes the label.
        multi_label: whether any number of labels may be right; each then has a probability of its own.
    """

    text: str
    labels: Sequence[str]
    template: str = TEMPLATE
    multi_label: bool = False

    def pairs(self) -> list[tuple[str, str]]:
        """Return the text with the hypothesis of each label."""
        return [(self.text, self.template.replace(PLACE, label)) for label in self.labels]


class ZeroShotParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face zero-shot-classification task; a text of labels has commas between them."""

    candidate_labels: str | list[str] | None = None
    hypothesis_template: str | None = None
    multi_label: bool | None = None
    truncation: bool | Truncation | None = None
    explain: ExplainParameters | None = None


class ZeroShotRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face zero-shot-classification task."""

    inputs: str | list[str]
    parameters: ZeroShotParameters | None = None
    options: HubOptions | None = None


class ZeroShotClassification(RowsTask):
    """Texts and labels to scores of the labels."""

    name: ClassVar[str] = "zero-shot-classification"
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = ZeroShotRequest
    hub_answer: ClassVar[Any] = list[LabelScore]
    example: ClassVar[str | None] = (
        """-d '{"inputs": "My phone is broken.", "parameters": {"candidate_labels": ["phone", "holiday"]}}'"""
    )
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    inputs = (TensorSpec("text", "BYTES", (-1,)), TensorSpec("candidate_labels", "BYTES", (-1,)))
    outputs = (
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("scores", "BYTES", (-1,)),
    )

    def __init__(
        self,
        tokenizer_json: str,
        *,
        labels: Sequence[str],
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
    ) -> None:
        """Set up; arguments are those of `TextEncoding`, and the names of the model's classes.

        Raises:
            TaskError: the model has no class for entailment, or its tokenizer takes no pairs.
        """
        super().__init__(tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        self.labels: Sequence[str] = ()  # those of a request
        self._entailment = next(
            (number for number, label in enumerate(labels) if label.lower().startswith(ENTAILMENT)), None
        )
        if self._entailment is None or len(labels) < 2:
            raise TaskError(
                f"the classes are {', '.join(labels)}; zero-shot classification needs one that begins with"
                f" {ENTAILMENT!r}, and another"
            )
        if not self.encoder.takes_pairs:
            raise TaskError("the tokenizer does not separate the two texts of a pair")
        self._contradiction = len(labels) - 1 if self._entailment == 0 else 0

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        return cls(**cls.arguments_of(files), labels=files.labels, graph_inputs=graph_inputs)

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """The parameters of the task API, one of each for a text."""
        return (TensorSpec("hypothesis_template", "BYTES", (-1,)), TensorSpec("multi_label", "BOOL", (-1,)))

    @property
    def explainable(self) -> Self:
        """The task itself: words of the text can be taken away."""
        return self

    def read(self, inputs: Arrays) -> Sequence[LabelledText]:
        """Return the texts with their labels, which are a JSON list or have commas between them.

        Raises:
            InvalidRequest: an element cannot be read, or the tensors differ in length.
        """
        texts = texts_of(inputs)
        if odd := next((name for name, array in inputs.items() if len(array) != len(texts)), None):
            raise InvalidRequest(f"text has {len(texts)} elements, {odd} has {len(inputs[odd])}")
        templates = (
            texts_of(inputs, "hypothesis_template") if "hypothesis_template" in inputs else [TEMPLATE] * len(texts)
        )
        flags = inputs["multi_label"].tolist() if "multi_label" in inputs else [False] * len(texts)
        lists = [
            _labels_of(given, f"candidate_labels[{number}]")
            for number, given in enumerate(texts_of(inputs, "candidate_labels"))
        ]
        return [_checked(LabelledText(*each)) for each in zip(texts, lists, templates, flags, strict=True)]

    def characters_of(self, given: LabelledText) -> int:
        """Return the length of a text for each of its labels, weighted by what a character costs to tokenize."""
        return characters_of(given.text) * len(given.labels) + sum(map(characters_of, given.labels))

    def prepare(
        self,
        inputs: Sequence[LabelledText],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the tokenization of each text with each of its labels."""
        rows = sum(len(given.labels) for given in inputs)
        if rows > limits.max_request_rows:
            raise InvalidRequest(
                f"the request has {len(inputs)} texts with {rows} labels in all, the limit is {limits.max_request_rows}"
                " (max_request_rows)"
            )
        return super().prepare(inputs, options, field, limits, memory)

    def rows_of(self, given: LabelledText, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize a text with each of its labels; truncation cuts the text and no label."""
        if len(given.labels) > max_rows:
            raise InvalidRequest(
                f"{field} has {len(given.labels)} candidate_labels, the limit is {max_rows} (max_batch_rows)"
            )
        limit = CHARACTERS_PER_TOKEN * self.max_length
        if truncate:
            given = given._replace(text=given.text[:limit])
        self.check_characters(given.text, 1, field)
        if any(len(hypothesis) > limit for _, hypothesis in given.pairs()):
            raise InvalidRequest(f"a label with its hypothesis has more than {limit} characters, which the model takes")
        rows, cut = [], False
        for encoding in self.encoder.tokenizer.encode_batch_fast(given.pairs()):
            if len(encoding.ids) <= self.max_length:
                rows.append(Tokens(encoding.ids, False, encoding.type_ids))
                continue
            if not truncate:
                raise InvalidRequest(
                    f"{field} has {len(encoding.ids)} tokens with a label, the model takes at most {self.max_length};"
                    f" {TRUNCATE_HINT}"
                )
            rows.append(_with_shorter_text(encoding, self.max_length))
            cut = True
        return TextRows(rows, given, None, cut)

    def finish(self, result: RowResults, options: AnswerOptions = DEFAULT_ANSWER) -> Classification:
        """Score the labels of a text, highest score first."""
        given: LabelledText = result.item.given
        scores = self._scores(result, given.multi_label).tolist()
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return Classification([given.labels[number] for number in order], [scores[number] for number in order])

    def _scores(self, result: RowResults, multi_label: bool) -> NDArray[np.float64]:
        """Return the scores of the labels, [R]: among the labels, or each against the model's contradiction."""
        logits_RC = result.numbers.astype(np.float64)
        of_labels_R = logits_RC[:, self._entailment]
        if multi_label or len(of_labels_R) == 1:
            scores_R: NDArray[np.float64] = 1 / (1 + np.exp(logits_RC[:, self._contradiction] - of_labels_R))
            return scores_R
        weights_R = np.exp(of_labels_R - of_labels_R.max())
        return np.asarray(weights_R / weights_R.sum())

    def to_tensors(self, results: Sequence[RowResults]) -> Arrays:
        """Make the output tensors of n texts: the best label and its score, and all labels as JSON."""
        answers = [self.finish(result) for result in results]
        return {
            "label": bytes_array([answer.labels[0].encode() for answer in answers]),
            "score": np.array([answer.scores[0] for answer in answers], dtype=np.float32),
            "scores": bytes_array([msgspec.json.encode(self.hub_document(answer)) for answer in answers]),
        }

    def read_hub(self, request: ZeroShotRequest) -> HubCall:
        """Read a request of the task API."""
        texts, field = inputs_and_field(request.inputs)
        parameters = request.parameters or ZeroShotParameters()
        if parameters.candidate_labels is None:
            raise InvalidRequest("parameters.candidate_labels is missing: the labels to score")
        labels = _labels_of(parameters.candidate_labels, "parameters.candidate_labels")
        template, multi_label = parameters.hypothesis_template or TEMPLATE, bool(parameters.multi_label)
        return HubCall(
            [_checked(LabelledText(text, labels, template, multi_label)) for text in texts],
            field,
            truncate=truncates(parameters.truncation),
            explain=parameters.explain,
            document=partial(_document, self, single=not isinstance(request.inputs, list)),
        )

    def hub_document(self, answer: Classification) -> list[dict[str, object]]:
        """Make the task API's answer for one text."""
        return labelled_scores(answer.labels, answer.scores)

    def golden_given(self, example: Example) -> LabelledText:
        """Return the text and the labels of a golden example."""
        return LabelledText(example.inputs["text"], _labels_of(example.inputs["candidate_labels"], "candidate_labels"))

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: LabelledText, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split the text into its tokens; a token is named by its place in the row of the first label."""
        text, hypothesis = item.given.pairs()[0]
        found = self.encoder.pair_body(Pair(text, hypothesis))
        spans = [span if number == 0 else None for span, number in zip(found.offsets, found.sequence_ids, strict=True)]
        first = item.parts[0]
        if len(spans) > len(first.ids):  # a text that was cut keeps its beginning
            own = [place for place, number in enumerate(found.sequence_ids) if number == 0]
            end = own[-1] + 1
            spans = spans[: end - (len(spans) - len(first.ids))] + spans[end:]
        return TextParts(text, [*range(len(first.ids))], spans, self.names(first.ids))

    def target_of(self, given: LabelledText, target: str, name: str) -> int:
        """Return the number of the request's label that is explained."""
        return class_number(given.labels, target, f"the request to {name}")

    def value_function(self, item: TextRows, result: RowResults, target: int | None) -> ValueFunction:
        """Return the score of a label, by default of the best one, as a function of the text's tokens that are kept."""
        given: LabelledText = item.given
        scores_R = self._scores(result, given.multi_label)
        number, first = int(scores_R.argmax()) if target is None else target, item.parts[0]

        def item_of(kept: Sequence[int]) -> TextRows:
            gone = {*range(len(first.ids))} - {*kept}
            # The rows have the same text: what is missing in the first one is taken from each.
            rows = [
                part_of_pair(part, self.pad_id, [place for place in range(len(part.ids)) if place not in gone])
                for part in item.parts
            ]
            return TextRows(rows, given)

        def values_of(part: RowResults) -> list[float]:
            return [float(self._scores(part, given.multi_label)[number])]

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=[float(scores_R[number])],
            target=given.labels[number],
            row=dict,
        )

    def golden_row(self, item: TextRows, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def _document(task: ZeroShotClassification, answers: Sequence[Classification], *, single: bool) -> Any:
    documents = [*map(task.hub_document, answers)]
    return documents[0] if single else documents


def _labels_of(given: str | list[str], field: str) -> list[str]:
    """Return the labels of a JSON list, or of a text with commas between them.

    Raises:
        InvalidRequest: there are none, or one is empty.
    """
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = msgspec.json.decode(given, type=list[str])
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{field} is not a JSON list of labels: {error}") from None
    labels = [label.strip() for label in given.split(",") if label.strip()] if isinstance(given, str) else given
    if not labels:
        raise InvalidRequest(f"{field} has no labels")
    if not all(label.strip() for label in labels):
        raise InvalidRequest(f"{field} has an empty label")
    return labels


def _checked(given: LabelledText) -> LabelledText:
    """Refuse a template without a place for the label.

    Raises:
        InvalidRequest: names the template.
    """
    if PLACE not in given.template:
        raise InvalidRequest(f"hypothesis_template {given.template!r} has no {PLACE}, where the label goes")
    return given


def _with_shorter_text(encoding: Encoding, max_tokens: int) -> Tokens:
    """Drop the last tokens of a pair's first text, so that the pair fits.

    Raises:
        InvalidRequest: the second text alone is too long.
    """
    own = [place for place, number in enumerate(encoding.sequence_ids) if number == 0]
    surplus = len(encoding.ids) - max_tokens
    if surplus >= len(own):
        raise InvalidRequest(f"a label with its hypothesis leaves no room for the text in {max_tokens} tokens")
    gone = {*own[len(own) - surplus :]}
    kept = [place for place in range(len(encoding.ids)) if place not in gone]
    return Tokens([encoding.ids[place] for place in kept], True, [encoding.type_ids[place] for place in kept])
