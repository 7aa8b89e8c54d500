"""Fine-tuning as a task of `export.training.trainer`: tokenized texts, batches of similar length, loss and score.

Shapes: B texts, T tokens, C labels.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.text_classification import LabelledTexts, TextClassificationData
from export.training.fine_tuning.objectives import objective_of
from export.training.fine_tuning.settings import FineTuneConfig, shape_of
from export.training.fine_tuning.starting_point import StartingPoint
from export.training.text_classifier import batches_of_similar_length
from export.training.trainer import StepOutcome, bf16_is_fast

WITHOUT_TYPES = ("distilbert", "modernbert", "mpnet")  # families that do not tell the texts of a pair apart by types
IDS, TYPES = 0, 1  # rows of a tokenized text
LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


class SequenceClassifier(nn.Module):
    """A sequence classifier of `transformers` that takes tensors and returns only its logits."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.config = shape_of(model.config, max_tokens)
        self._takes_types = model.config.model_type not in WITHOUT_TYPES

    def forward(self, ids_BT: Tensor, types_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Classify ids, types and mask, int64 [B, T]; return logits [B, C]."""
        more = {"token_type_ids": types_BT} if self._takes_types else {}
        logits_BC: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT, **more).logits
        return logits_BC


class FineTuningBatch(NamedTuple):
    """One step's texts; the first dimension of `targets` is B."""

    ids_BT: Tensor
    types_BT: Tensor
    mask_BT: Tensor
    targets: Tensor


class FineTuningTask:
    """The task of text classification or regression with an encoder of `transformers`."""

    def __init__(
        self, data: TextClassificationData, config: FineTuneConfig, start: StartingPoint, device: torch.device
    ) -> None:
        self.data, self.config, self.device = data, config, device
        self.autocast_bf16 = bf16_is_fast(device)
        self.tokenizer = start.tokenizer
        self.objective = objective_of(data, config, device)
        self.train_rows = encode(start.tokenizer, data.train)
        self.validation_rows = encode(start.tokenizer, data.validation)
        self._special_ids = start.tokenizer.all_special_ids
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)

    def batches(self, epoch: int) -> Iterator[FineTuningBatch]:
        """Yield batches of texts of similar length, with some tokens dropped."""
        rng = np.random.default_rng((self.config.seed, epoch))
        rows = [self._thinned(row, rng) for row in self.train_rows]
        for members in batches_of_similar_length([row[IDS] for row in rows], self.config.batch_size, rng):
            inputs = pad([rows[member] for member in members], self.tokenizer, self.device)
            targets = self.objective.targets([self.data.train.labels[member] for member in members])
            yield FineTuningBatch(*inputs, targets.to(self.device))

    def _thinned(self, row_2T: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Drop tokens at random, as augmentation; special tokens stay."""
        if self.config.token_dropout == 0.0:
            return row_2T
        kept_T = rng.random(row_2T.shape[1]) >= self.config.token_dropout
        return row_2T[:, kept_T | np.isin(row_2T[IDS], self._special_ids)]

    def step(self, model: nn.Module, batch: FineTuningBatch) -> StepOutcome:
        """Compute the loss of the problem, and count the right decisions."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16):
            logits_BC = model(batch.ids_BT, batch.types_BT, batch.mask_BT).float()
        right = self.objective.correct(logits_BC.detach(), batch.targets)
        return StepOutcome(self.objective.loss(logits_BC, batch.targets), int(right.sum()), right.numel())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the choosing split; the score depends on the problem."""
        logits_NC = predict(model, self.validation_rows, self.tokenizer, self.device)
        return self.objective.score(logits_NC, self.data.validation.labels)


def encode(tokenizer: Any, split: LabelledTexts) -> list[NDArray[np.int64]]:
    """Tokenize each text or pair to ids and types, int64 [2, T]; of a pair that is too long, the longer text is cut.

    Types are 0 where the tokenizer's own call would not give them to the network.
    """
    has_types = "token_type_ids" in tokenizer.model_input_names
    encoded = tokenizer(
        split.texts,
        split.pairs,
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_token_type_ids=has_types,
        return_attention_mask=False,
    )
    types = encoded["token_type_ids"] if has_types else [[0] * len(ids) for ids in encoded["input_ids"]]
    return [np.array(row, dtype=np.int64) for row in zip(encoded["input_ids"], types, strict=True)]


def pad(rows: list[NDArray[np.int64]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pad rows to the longest; return ids, types and the mask of real tokens, int64 [B, T] each."""
    longest = max(row.shape[1] for row in rows)
    ids_BT = np.full((len(rows), longest), tokenizer.pad_token_id, dtype=np.int64)
    types_BT, mask_BT = np.zeros_like(ids_BT), np.zeros_like(ids_BT)
    for number, row_2T in enumerate(rows):
        length = row_2T.shape[1]
        ids_BT[number, :length], types_BT[number, :length], mask_BT[number, :length] = row_2T[IDS], row_2T[TYPES], 1
    return tuple(torch.from_numpy(each).to(device) for each in (ids_BT, types_BT, mask_BT))  # type: ignore[return-value]


@torch.inference_mode()
def predict(
    model: nn.Module, rows: list[NDArray[np.int64]], tokenizer: Any, device: torch.device, batch_size: int = 64
) -> NDArray[np.float32]:
    """Compute logits [N, C] in the given order; float32, without dropout."""
    model.eval()
    order = np.argsort([row.shape[1] for row in rows], kind="stable")
    parts = [
        model(*pad([rows[member] for member in order[first : first + batch_size]], tokenizer, device))
        for first in range(0, len(order), batch_size)
    ]
    logits_NC: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return logits_NC[np.argsort(order)]


def layer_rates(decay: float, model: nn.Module) -> Callable[[str], float]:
    """Return the learning-rate scale by weight name: 1 for the head, lower for each layer below it."""
    depths = [int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name))]
    num_layers = 1 + max(depths, default=-1)

    def lr_scale(name: str) -> float:
        if match := LAYER.search(name):
            return float(decay ** (num_layers - int(match[1])))
        return float(decay ** (num_layers + 1)) if ".embeddings." in name else 1.0

    return lr_scale


def freeze_embeddings(model: nn.Module) -> None:
    """Freeze the weights before the first layer."""
    for name, weight in model.named_parameters():
        if ".embeddings." in name:
            weight.requires_grad_(False)
