"""Trains a translation network, from a data set to a run folder.

    sentence pairs ──> one tokenizer ──> ids ──> batches by number of tokens ──> `trainer` ──> weights, measured

`export.training.run_folder` describes the run folder. It also holds `tokenizer.json`, and `translations.tsv` with the
test sentences and their translations.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from export.data.bpe_dropout import SubwordDropout
from export.data.tokenizers import train_translation_tokenizer
from export.data.translation import ParallelTexts, TranslationData
from export.networks.fused_cross_entropy import smoothed_cross_entropy
from export.networks.translation import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    RecurrentTranslationConfig,
    RecurrentTranslator,
    State,
    TranslationConfig,
    TranslationTransformer,
)
from export.task_table import TRANSLATION
from export.training.quality import translation_quality
from export.training.run_folder import Networks, begin_run, end_run, halve_weights, read_network
from export.training.trainer import StepOutcome, Trainer, TrainerConfig, bf16_is_fast, this_device
from export.whole_files import write_text
from service.tasks.decoding.search import Hypothesis, SearchOptions, longest_translation, top_k_log_probs
from service.tasks.decoding.sentence import Sentence

NetworkConfig = TranslationConfig | RecurrentTranslationConfig
NETWORKS: Networks = {
    TranslationConfig: ("translation-transformer", TranslationTransformer),
    RecurrentTranslationConfig: ("translation-lstm", RecurrentTranslator),
}
# Records of runs on data of one's own say it.
NOT_HUGGING_FACE = {"hugging_face": "not saved: transformers has no class for this network"}
BEAMS_OF_PAPERS = 5  # of Wu et al. 2021 (arXiv 2105.14462), the comparison on Multi30k


@dataclass(frozen=True, kw_only=True)
class TranslationTrainConfig(TrainerConfig):
    """How a translation network is trained. The defaults are the recipe of the benchmark on Multi30k."""

    data: str = "multi30k"  # a description in export/data/sets/; "" for data of one's own
    epochs: int = 60
    patience: int = 60  # the rate falls to the end, and the best epochs come last
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    batch_tokens: int = 4096  # per side, padding included
    label_smoothing: float = 0.1
    vocab_size: int = 10000
    lowercase: bool = False
    subword_dropout: float = 0.1  # see export/data/bpe_dropout.py
    model: NetworkConfig = dataclasses.field(
        default_factory=lambda: TranslationConfig(
            vocab_size=10000,
            d_model=128,
            num_layers=4,
            num_decoder_layers=4,
            num_heads=4,
            d_ff=256,
            dropout=0.3,
            inner_dropout=False,
            activation="relu",
        )
    )


def train_translation(
    data: TranslationData,
    config: TranslationTrainConfig,
    run_dir: Path,
    console: Console,
    time_budget_s: float = math.inf,
    command: str = "",
) -> bool:
    """Train or resume; arguments are those of `export.training.text_classifier.train_text_classifier`.

    Returns:
        whether the run is finished.

    Raises:
        ValueError: `run_dir` holds a run with another configuration.
    """
    console.print(f"tokenizing {len(data.train):,} training pairs")
    tokenizer = train_translation_tokenizer(data.train.source + data.train.target, config.vocab_size, config.lowercase)
    if data.document is not None:
        data = without_long_pairs(data, tokenizer, config.model.max_tokens, console)
    # A small data set yields fewer pieces than configured.
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.get_vocab_size())
    if not begin_run(run_dir, shape, NETWORKS):
        return True
    write_text(run_dir / "tokenizer.json", tokenizer.to_str(pretty=True))
    device = this_device()
    torch.manual_seed(config.seed)
    task = TranslationTrainingTask(data, config, tokenizer, shape.max_tokens, device)
    trainer = Trainer(task, build_network(shape), build_network(shape), config, run_dir, device)
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


def without_long_pairs(
    data: TranslationData, tokenizer: Tokenizer, max_tokens: int, console: Console
) -> TranslationData:
    """Leave out training and choosing pairs of which a side has more tokens than the network takes, and say how many.

    Raises:
        ValueError: none is left of a split.
    """
    parts = {}
    for name in ("train", "validation"):
        texts: ParallelTexts = getattr(data, name)
        sides = (tokenizer.encode_batch(side) for side in (texts.source, texts.target))
        kept = [row for row, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) <= max_tokens]
        if left_out := len(texts) - len(kept):
            console.print(f"{left_out:,} of {len(texts):,} {name} pairs have more than {max_tokens} tokens: left out")
        if not kept:
            raise ValueError(f"no {name} pair of {data.name} has at most {max_tokens} tokens; --set model.max_tokens=N")
        parts[name] = ParallelTexts([texts.source[row] for row in kept], [texts.target[row] for row in kept])
    return dataclasses.replace(data, train=parts["train"], validation=parts["validation"])


class Pair(NamedTuple):
    """A sentence and its translation, as ids that end with [EOS]."""

    source: list[int]
    target: list[int]


class TranslationBatch(NamedTuple):
    """One step's sentences; `labels_N` are the tokens to be predicted, of all sentences one after another."""

    source_ids: Tensor
    source_mask: Tensor
    target_ids: Tensor
    target_mask: Tensor
    labels_N: Tensor


class TranslationTrainingTask:
    """The task of translation for `export.training.trainer`."""

    def __init__(
        self,
        data: TranslationData,
        config: TranslationTrainConfig,
        tokenizer: Tokenizer,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self.data, self.config, self.tokenizer, self.device = data, config, tokenizer, device
        self.max_tokens = max_tokens
        self.autocast_bf16 = bf16_is_fast(device)
        self.train_pairs = encode(tokenizer, data.train, max_tokens)
        self._dropouts: list[SubwordDropout] = []
        if config.subword_dropout:
            if len(self.train_pairs) < len(data.train):
                raise ValueError(f"subword_dropout needs sentences of at most {max_tokens} tokens")
            self._dropouts = [
                SubwordDropout(tokenizer, side, config.subword_dropout, end_id=EOS_ID, seed=config.seed)
                for side in (data.train.source, data.train.target)
            ]
        self.validation_pairs = encode(tokenizer, data.validation, max_tokens)
        if not self.train_pairs or not self.validation_pairs:
            raise ValueError(f"no sentence pair of {data.name} has at most {max_tokens} tokens")
        self.steps_per_epoch = len(batches_of_tokens(self.train_pairs, config.batch_tokens, np.random.default_rng()))

    def batches(self, epoch: int) -> Iterator[TranslationBatch]:
        """Yield batches of similar length, measured without BPE dropout, so that epochs have equally many batches."""
        rng = np.random.default_rng((self.config.seed, epoch))
        batches, pairs = batches_of_tokens(self.train_pairs, self.config.batch_tokens, rng), self.train_pairs
        if self._dropouts:
            pairs = [Pair(*sides) for sides in zip(*(side.encode(rng) for side in self._dropouts), strict=True)]
        for number in rng.permutation(len(batches)):
            # BPE dropout may lengthen a sentence beyond the limit; the rest is truncated.
            members = [Pair(*(side[: self.max_tokens] for side in pairs[member])) for member in batches[number]]
            yield collate(members, self.device)

    def step(self, model: nn.Module, batch: TranslationBatch) -> StepOutcome:
        """Compute the cross entropy of the next tokens, each with equal weight."""
        network: Any = model
        with self._autocast():
            x_ND = network.features(*batch[:4])
        loss, correct_N = smoothed_cross_entropy(
            x_ND,
            network.embedding.weight,
            network.never_V,
            batch.labels_N,
            self.config.label_smoothing,
            torch.bfloat16 if self.autocast_bf16 else torch.float32,
        )
        return StepOutcome(loss, int(correct_N.sum()), len(batch.labels_N))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16)

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure next-token accuracy under teacher forcing, which is the score, and the loss."""
        model.eval()
        correct, loss_sum, count = 0, 0.0, 0
        for members in batches_of_tokens(self.validation_pairs, self.config.batch_tokens, np.random.default_rng(0)):
            batch = collate([self.validation_pairs[member] for member in members], self.device)
            with self._autocast():
                logits_NV = model(*batch[:4]).float()
            correct += int((logits_NV.argmax(1) == batch.labels_N).sum())
            loss_sum += float(functional.cross_entropy(logits_NV, batch.labels_N, reduction="sum"))
            count += len(batch.labels_N)
        return {"score": correct / count, "loss": loss_sum / count}


def encode(tokenizer: Tokenizer, texts: ParallelTexts, max_tokens: int) -> list[Pair]:
    """Tokenize each pair; pairs beyond the limit are left out."""
    sides = (tokenizer.encode_batch(side) for side in (texts.source, texts.target))
    pairs = [Pair(source.ids, target.ids) for source, target in zip(*sides, strict=True)]
    return [pair for pair in pairs if max(len(pair.source), len(pair.target)) <= max_tokens]


def batches_of_tokens(pairs: list[Pair], batch_tokens: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Make batches of at most `batch_tokens` per side, padding included; pairs of equal length are reshuffled.

    Pairs are sorted by length, so that every epoch has equally many batches of the same sizes.
    """
    source_N = np.array([len(pair.source) for pair in pairs])
    target_N = np.array([len(pair.target) for pair in pairs])
    order = np.lexsort((rng.random(len(pairs)), source_N, target_N))
    batches, first, longest = [], 0, 0
    for place, member in enumerate(order):
        longer = max(longest, source_N[member], target_N[member])
        if place > first and longer * (place - first + 1) > batch_tokens:
            batches.append(order[first:place])
            first, longer = place, max(source_N[member], target_N[member])
        longest = longer
    return [*batches, order[first:]]


def collate(pairs: list[Pair], device: torch.device) -> TranslationBatch:
    """Collate pairs to a batch; the decoder's input is the target shifted by one, beginning with [BOS]."""
    source_ids, source_mask = pad([pair.source for pair in pairs], device)
    target_ids, target_mask = pad([[BOS_ID, *pair.target[:-1]] for pair in pairs], device)
    labels_N = torch.tensor([token for pair in pairs for token in pair.target], device=device)
    return TranslationBatch(source_ids, source_mask, target_ids, target_mask, labels_N)


def pad(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad ids to the longest, [B, T], and return the mask of real tokens [B, T]; int64."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows], device=device)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids_BT, mask_BT


# Entry of a state with the logarithm of each row's softmax denominator [R], which some searches read.
LOG_NORMALIZERS = "log_normalizers"


class Translator(Protocol):
    """The interface of a translation model for `translate`, whatever computes it."""

    def begin(self, sources: list[list[int]]) -> State:
        """Compute the state of the first step, one row per source."""

    def next_tokens(
        self, last_R: list[int], state: State, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], State]:
        """Decode one more token per row: log probabilities and ids of the top `count`, [R, count]; the next state."""


class TorchTranslator:
    """A network of this repository, in float32."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model.eval(), device

    @torch.inference_mode()
    def begin(self, sources: list[list[int]]) -> State:
        """Compute the state of the first step, as `Translator.begin` says."""
        state: State = self._model.begin(*pad(sources, self._device))
        return state

    @torch.inference_mode()
    def next_tokens(
        self, last_R: list[int], state: State, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], State]:
        """Decode one more token in each row, as `Translator.next_tokens` says."""
        logits_RV, state = self._model.step(torch.tensor(last_R, device=self._device), state)
        top_RN, ids_RN = top_k_log_probs(logits_RV.float().cpu().numpy(), min(count, logits_RV.size(1)))
        highest_R = logits_RV.float().amax(dim=1)
        return top_RN, ids_RN, state | {LOG_NORMALIZERS: highest_R - torch.from_numpy(top_RN[:, 0]).to(highest_R)}


def translate(
    translator: Translator,
    sources: list[list[int]],
    options: list[SearchOptions],
    batch_size: int = 64,
    *,
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> list[Hypothesis]:
    """Translate ids that end with [EOS], batched by length; all with the same number of beams.

    Sentences of a batch start and end together, which suffices for measuring and comparing; for serving there is
    `service.scheduling.continuous_batcher`.
    """
    found: dict[int, Hypothesis] = {}
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        beams = options[members[0]].num_beams
        items = {
            number: Sentence(sources[number], options[number], bos_id=bos_id, eos_id=eos_id, truncated=False)
            for number in members
        }
        searches = {number: item.search for number, item in items.items()}
        count = max(item.num_candidates for item in items.values())
        state = translator.begin([sources[number] for number in members for _ in range(beams)])
        while searches:
            last_R = [token for search in searches.values() for token in search.next_ids]
            top, ids, state = translator.next_tokens(last_R, state, count)
            going_on: list[int] = []
            for place, (number, search) in enumerate(list(searches.items())):
                rows = slice(place * beams, (place + 1) * beams)
                if items[number].reads_normalizers:
                    items[number].set_log_normalizers(state[LOG_NORMALIZERS][rows].tolist())
                parents = search.advance(top[rows].tolist(), ids[rows].tolist())
                if search.done:
                    found[number] = searches.pop(number).best()
                else:
                    going_on += [place * beams + parent for parent in parents]
            chosen = torch.tensor(going_on, dtype=torch.int64)
            state = {name: tensor.index_select(0, chosen.to(tensor.device)) for name, tensor in state.items()}
    return [found[number] for number in range(len(sources))]


def translate_texts(
    model: Any,
    tokenizer: Tokenizer,
    texts: list[str],
    device: torch.device,
    console: Console,
    *,
    num_beams: int = BEAMS_OF_PAPERS,
) -> list[str]:
    """Translate texts, with progress; a text beyond the limit is truncated."""
    sources = [encoding.ids[: model.config.max_tokens] for encoding in tokenizer.encode_batch(texts)]
    parts = []
    for first in track(range(0, len(sources), 256), description="translating", console=console, transient=True):
        part = sources[first : first + 256]
        options = [
            SearchOptions(
                max_new_tokens=longest_translation(len(source), model.config.max_tokens),
                num_beams=num_beams,
            )
            for source in part
        ]
        parts += translate(TorchTranslator(model, device), part, options)
    return [tokenizer.decode(hypothesis.ids) for hypothesis in parts]


def finish(trainer: Trainer, task: TranslationTrainingTask, command: str, console: Console) -> None:
    """Measure the kept weights on the test splits, and write the record."""
    run_dir, data = trainer.run_dir, task.data
    console.print("measuring the best weights")
    halve_weights(run_dir)
    about = {
        "task": TRANSLATION,
        "network": NETWORKS[type(trainer.model.config)][0],
        "data": data.name,
        "source_language": data.source_language,
        "target_language": data.target_language,
        "num_training_examples": len(data.train),
        "bf16": task.autocast_bf16,
    }
    if data.document is not None:
        about |= {"data_document": data.document, "measured_on": ", ".join(data.reported), **NOT_HUGGING_FACE}
    measured = measure(run_dir, data, trainer.device, console)
    end_run(trainer, command=command, about=about, measured=measured, console=console)


def measure(run_dir: Path, data: TranslationData, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure a run's weights on the splits that are reported, and write the translations beside them."""
    model = load_run_model(run_dir).to(device)
    tokenizer = Tokenizer.from_file(str(run_dir / "tokenizer.json"))
    quality, lines = {}, []
    for name, split in data.reported.items():
        by_search = {
            "greedy": translate_texts(model, tokenizer, split.source, device, console, num_beams=1),
            f"beam {BEAMS_OF_PAPERS}": translate_texts(model, tokenizer, split.source, device, console),
        }
        quality[name] = {
            search: translation_quality(texts, split.target, data.target_language).as_dict()
            for search, texts in by_search.items()
        }
        best = by_search[f"beam {BEAMS_OF_PAPERS}"]
        lines += ["\t".join(row) for row in zip(split.source, split.target, best, strict=True)]
    write_text(run_dir / "translations.tsv", "\n".join(lines) + "\n")
    return {"quality": quality}


def build_network(config: NetworkConfig) -> nn.Module:
    """Build a network with random weights."""
    return NETWORKS[type(config)][1](config)


def load_run_model(run_dir: Path) -> Any:
    """Load the best network of a run, in float32, ready to translate; its shape is its `config`."""
    return read_network(run_dir, NETWORKS)
