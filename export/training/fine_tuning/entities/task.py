"""Training on entities as a task of `export.training.trainer`: tagged windows, loss and score.

Texts are cut into windows, and tokens become entities, by the code that serves them
(`service/tasks/text/token_classification.py`), so that what is measured is what is answered.

Shapes: B windows, T tokens, N tokens of a split, C tags.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.data.token_classification import Entity, LabelledEntities, TokenClassificationData, bio_tags
from export.training.fine_tuning.entities.settings import EntityTrainConfig
from export.training.fine_tuning.settings import shape_of
from export.training.fine_tuning.starting_point import StartingPoint
from export.training.fine_tuning.task import WITHOUT_TYPES
from export.training.text_classifier import batches_of_similar_length
from export.training.trainer import StepOutcome, bf16_is_fast
from service.errors import InvalidRequest
from service.tasks.text.entities import Strategy
from service.tasks.text.rows import RowResults, TextRows, Window
from service.tasks.text.token_classification import EntityText, TokenClassification

NOT_LABELLED = -100  # tokens that the loss leaves out: special ones, and padding
MAX_ROWS = 1 << 20  # windows of a text
STRATEGIES: dict[str, Strategy] = {"all": "simple", "first": "first"}  # by `labelled_tokens`


class TokenClassifier(nn.Module):
    """A token classifier of `transformers` that takes tensors and returns only its logits."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.config = shape_of(model.config, max_tokens)
        self._takes_types = model.config.model_type not in WITHOUT_TYPES

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Label tokens, ids and mask int64 [B, T]; return logits [B, T, C]."""
        more = {"token_type_ids": torch.zeros_like(ids_BT)} if self._takes_types else {}
        logits_BTC: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT, **more).logits
        return logits_BTC


class EntityBatch(NamedTuple):
    """One step's windows."""

    ids_BT: Tensor
    mask_BT: Tensor
    tags_BT: Tensor  # NOT_LABELLED where nothing is asked


class TaggedWindow(NamedTuple):
    """The ids of a window, special ones included, and the tag of each; int64 [T]."""

    ids_T: NDArray[np.int64]
    tags_T: NDArray[np.int64]


def served_task(tokenizer: Any, tag_names: Sequence[str], max_tokens: int) -> TokenClassification:
    """Open the served task with a fast tokenizer of `transformers`."""
    return TokenClassification(
        tokenizer.backend_tokenizer.to_str(),
        labels=tag_names,
        max_tokens=max_tokens,
        pad_id=tokenizer.pad_token_id,
        graph_inputs=("input_ids", "attention_mask"),
    )


def rows_of_split(served: TokenClassification, split: LabelledEntities, strategy: Strategy) -> list[TextRows]:
    """Cut the texts of a split into windows, as they are served.

    Raises:
        ValueError: the tokenizer makes nothing of a text.
    """
    items = []
    for text in split.texts:
        try:
            given = EntityText(text, strategy)
            items.append(served.rows_of(given, truncate=False, field=f"the text {text[:60]!r}", max_rows=MAX_ROWS))
        except InvalidRequest as error:
            raise ValueError(str(error)) from error
    return items


class EntityTask:
    """The task of token classification with an encoder of `transformers`."""

    def __init__(
        self, data: TokenClassificationData, config: EntityTrainConfig, start: StartingPoint, device: torch.device
    ) -> None:
        self.data, self.config, self.device = data, config, device
        self.autocast_bf16 = bf16_is_fast(device)
        self.tokenizer = start.tokenizer
        self.strategy = STRATEGIES[config.labelled_tokens]
        self.served = served_task(start.tokenizer, data.tag_names, start.max_tokens)
        self.validation_items = rows_of_split(self.served, data.validation, self.strategy)
        number_of = {tag: number for number, tag in enumerate(data.tag_names)}
        items = rows_of_split(self.served, data.train, self.strategy)
        self._windows = [
            _tagged(window, entities, words if config.labelled_tokens == "first" else None, number_of)
            for item, entities, words in zip(items, data.train.entities, data.train.words, strict=True)
            for window in item.places
        ]
        self.steps_per_epoch = math.ceil(len(self._windows) / config.batch_size)
        self._weight_C: Tensor | None = None
        if config.class_weights == "balanced":
            tags_N = np.concatenate([window.tags_T for window in self._windows])
            counts_C = np.bincount(tags_N[tags_N != NOT_LABELLED], minlength=len(number_of))
            weight_C = counts_C.sum() / (len(number_of) * counts_C.clip(min=1))
            self._weight_C = torch.tensor(weight_C, dtype=torch.float32, device=device)

    def batches(self, epoch: int) -> Iterator[EntityBatch]:
        """Yield batches of windows of similar length, with some tokens dropped."""
        rng = np.random.default_rng((self.config.seed, epoch))
        windows = [self._thinned(window, rng) for window in self._windows]
        for members in batches_of_similar_length([window.ids_T for window in windows], self.config.batch_size, rng):
            yield self._batch([windows[member] for member in members])

    def _thinned(self, window: TaggedWindow, rng: np.random.Generator) -> TaggedWindow:
        """Drop tokens outside of entities at random, as augmentation."""
        if self.config.token_dropout == 0.0:
            return window
        kept_T = (rng.random(len(window.ids_T)) >= self.config.token_dropout) | (window.tags_T != 0)
        return TaggedWindow(window.ids_T[kept_T], window.tags_T[kept_T])

    def _batch(self, windows: Sequence[TaggedWindow]) -> EntityBatch:
        longest = max(len(window.ids_T) for window in windows)
        ids_BT = np.full((len(windows), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask_BT, tags_BT = np.zeros_like(ids_BT), np.full_like(ids_BT, NOT_LABELLED)
        for row, (ids_T, tags_T) in enumerate(windows):
            ids_BT[row, : len(ids_T)], mask_BT[row, : len(ids_T)], tags_BT[row, : len(ids_T)] = ids_T, 1, tags_T
        return EntityBatch(*(torch.from_numpy(each).to(self.device) for each in (ids_BT, mask_BT, tags_BT)))

    def step(self, model: nn.Module, batch: EntityBatch) -> StepOutcome:
        """Compute the cross entropy of the tags, and count the right ones."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16):
            logits_BTC = model(batch.ids_BT, batch.mask_BT).float()
        asked_BT = batch.tags_BT != NOT_LABELLED
        logits_NC, tags_N = logits_BTC[asked_BT], batch.tags_BT[asked_BT]
        smoothing = self.config.label_smoothing
        loss = functional.cross_entropy(logits_NC, tags_N, self._weight_C, label_smoothing=smoothing)
        return StepOutcome(loss, int((logits_NC.argmax(-1) == tags_N).sum()), len(tags_N))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure strict F1 of entities, which is the score, on the choosing split."""
        results = predict_items(model, self.served, self.validation_items, self.device)
        found = entities_of(self.served, results)
        pairs = [(set(ours), set(theirs)) for ours, theirs in zip(found, self.data.validation.entities, strict=True)]
        right, total = sum(len(a & b) for a, b in pairs), sum(len(a) + len(b) for a, b in pairs)
        logits_NC, tags_N = labelled_tokens(results, self.data.validation, self.data.tag_names)
        return {"score": 2 * right / max(1, total), "token_accuracy": float((logits_NC.argmax(1) == tags_N).mean())}


def _tagged(
    window: Window, entities: Sequence[Entity], words: Sequence[tuple[int, int]] | None, number_of: dict[str, int]
) -> TaggedWindow:
    """Tag the tokens of a window by their characters.

    Args:
        window: the window.
        entities: the entities of the text.
        words: the words of the text, where only the first token of each is labelled.
        number_of: numbers of the tags.
    """
    tags_T = np.full(len(window.spans), NOT_LABELLED, dtype=np.int64)
    inner = window.spans[window.start : window.end]
    tags_T[window.start : window.end] = [number_of[tag] for tag in bio_tags(inner, entities)]
    if words is not None:
        begins = {start for start, _ in words}
        later = [place for place in range(window.start, window.end) if window.spans[place][0] not in begins]
        tags_T[later] = NOT_LABELLED
    return TaggedWindow(np.array(window.tokens.ids, dtype=np.int64), tags_T)


@torch.inference_mode()
def predict_items(
    model: nn.Module, served: TokenClassification, items: Sequence[TextRows], device: torch.device, batch_size: int = 32
) -> list[RowResults]:
    """Compute the logits of texts; float32, without dropout."""
    model.eval()
    results: dict[int, RowResults] = {}
    order = sorted(range(len(items)), key=lambda number: items[number].length)
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        feeds = served.collate([items[member] for member in members])
        tensors = (torch.from_numpy(feeds[name]).to(device) for name in ("input_ids", "attention_mask"))
        logits_BTC = model(*tensors).float().cpu().numpy()
        split = served.split_batch({"logits": logits_BTC}, [items[member] for member in members])
        results |= dict(zip(members, split, strict=True))
    return [results[number] for number in range(len(items))]


def entities_of(served: TokenClassification, results: Sequence[RowResults]) -> list[list[Entity]]:
    """Return the entities of texts, as the service answers them."""
    return [[Entity(each.start, each.end, each.label) for each in served.finish(result)] for result in results]


def labelled_tokens(
    results: Sequence[RowResults], split: LabelledEntities, tag_names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the logits and tags of all tokens of a split, [N, C] and [N]; tokens of two windows count twice."""
    number_of = {tag: number for number, tag in enumerate(tag_names)}
    logits, tags = [], []
    for result, entities in zip(results, split.entities, strict=True):
        for window, row_TC in zip(result.item.places, result.rows, strict=True):
            tagged = _tagged(window, entities, None, number_of)
            asked_T = tagged.tags_T != NOT_LABELLED
            logits.append(row_TC[asked_T])
            tags.append(tagged.tags_T[asked_T])
    return np.concatenate(logits), np.concatenate(tags)
