"""Trains a text classifier, from a data set to a run folder.

    texts ──> tokenizer ──> ids ──> batches of similar length ──> `export.training.trainer` ──> best weights, measured

A run folder holds `tokenizer.json`, `model.json` (the network's shape), `model.safetensors` (the best weights),
`result.json` (what was measured, and how), `curves.png`, and `checkpoint.pt` while the run is unfinished. The same
command resumes an interrupted run from its checkpoint, with the same result.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from export.data.own.labels import SINGLE_LABEL
from export.data.text_augmentation import augment_texts, neighbours_of
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.finished_runs import require_finished
from export.markdown import pyplot_without_a_screen
from export.networks.text_baselines import BiLstmClassifier, BiLstmConfig, KimCnnClassifier, KimCnnConfig
from export.networks.transformer import EncoderConfig, TextClassifier
from export.task_table import TEXT_CLASSIFICATION
from export.training.distillation import Teacher, directions_of, distance_of_tokens, judge
from export.training.measures.calibration import fit_temperature
from export.training.measures.labels import single_label_quality
from export.training.quality import classification_quality
from export.training.run_folder import Networks, begin_run, end_run, halve_weights, read_network, read_weights
from export.training.text_recipes import NetworkConfig, TextTrainConfig, check_settings
from export.training.text_starting_point import StartingPoint, starting_point
from export.training.trainer import WEIGHTS, StepOutcome, Trainer, bf16_is_fast, this_device
from export.whole_files import save_figure, write_bytes, write_text

PAD_ID = 0
NUM_TEXTS_FOR_DIRECTIONS = 4_096  # training texts that determine the projection of a student's targets
NETWORKS: Networks = {
    EncoderConfig: ("transformer", TextClassifier),
    BiLstmConfig: ("bilstm", BiLstmClassifier),
    KimCnnConfig: ("kim-cnn", KimCnnClassifier),
}


def train_text_classifier(
    data: TextClassificationData,
    config: TextTrainConfig,
    run_dir: Path,
    console: Console,
    time_budget_s: float = math.inf,
    command: str = "",
) -> bool:
    """Train or resume until the epochs are done, validation no longer improves, or the time is up.

    Args:
        data: the data set.
        config: the settings of training.
        run_dir: the run folder.
        console: shows progress.
        time_budget_s: stop after this time, with a checkpoint to resume from.
        command: the command that repeats the training, for the record; "" for the one that runs now.

    Returns:
        whether the run is finished.

    Raises:
        ValueError: `run_dir` holds a run with another configuration, or settings contradict each other.
    """
    check_settings(config)
    if data.problem != SINGLE_LABEL or data.train.pairs is not None:
        what = "pairs of texts" if data.train.pairs is not None else data.problem
        raise ValueError(f"this network takes single texts with one label each, not {what}; choose a recipe text-...")
    data = dataclasses.replace(data, train=fraction_of(data.train, config.train_share, config.seed))
    console.print(f"tokenizing {len(data.train):,} training texts")
    start = starting_point(data, config)
    if not begin_run(run_dir, start.config, NETWORKS):
        return True
    write_text(run_dir / "tokenizer.json", start.tokenizer.to_str(pretty=True))
    device = this_device()
    torch.manual_seed(config.seed)
    model = build_network(start.config)
    model.load_state_dict(model.state_dict() | start.weights)
    if config.freeze_embeddings:
        freeze_embeddings(model)
    task = TextTrainingTask(data, config, start, device)
    if config.teacher:
        task.learn_from(run_dir.parent / config.teacher)
    trainer = Trainer(
        task,
        model,
        build_network(start.config),
        config,
        run_dir,
        device,
        lr_scale=layer_rates(config.layer_decay, model),
    )
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


def freeze_embeddings(model: nn.Module) -> None:
    """Freeze the weights before the first layer."""
    for name, weight in model.named_parameters():
        if name.startswith(("embedding", "positions")):
            weight.requires_grad_(False)


def layer_rates(decay: float, model: nn.Module) -> Callable[[str], float]:
    """Return the learning-rate scale by weight name: 1 above the last layer, lower for each layer below."""
    depths = [int(name.split(".")[1]) for name, _ in model.named_parameters() if name.startswith("layers.")]
    num_layers = 1 + max(depths, default=-1)

    def lr_scale(name: str) -> float:
        if name.startswith(("embedding", "positions")):
            return decay ** (num_layers + 1)
        return decay ** (num_layers - int(name.split(".")[1])) if name.startswith("layers.") else 1.0

    return lr_scale


def fraction_of(examples: LabelledTexts, fraction: float, seed: int) -> LabelledTexts:
    """Choose a random fraction of the examples, in their order.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_share must be above 0 and at most 1, not {fraction}")
    if fraction == 1:
        return examples
    count = max(1, round(fraction * len(examples)))
    members = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
    pairs = None if examples.pairs is None else [examples.pairs[n] for n in members]
    return LabelledTexts([examples.texts[n] for n in members], [examples.labels[n] for n in members], pairs)


class TextBatch(NamedTuple):
    """One step's texts."""

    ids_BT: Tensor
    mask_BT: Tensor
    labels_B: Tensor
    judged_ids: list[NDArray[np.int64]] | None  # the texts in the teacher's tokens


class TextTrainingTask:
    """The task of text classification for `export.training.trainer`."""

    def __init__(
        self, data: TextClassificationData, config: TextTrainConfig, start: StartingPoint, device: torch.device
    ) -> None:
        self.data, self.config, self.device = data, config, device
        self.autocast_bf16 = bf16_is_fast(device)
        self.train_ids = encode(start.tokenizer, data.train, start.config.max_tokens)
        self.validation_ids = encode(start.tokenizer, data.validation, start.config.max_tokens)
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.start = start
        added = start.tokenizer.get_added_tokens_decoder()
        self.special_ids = [number for number, token in added.items() if token.special]
        self.teacher: Teacher | None = None
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)

    def learn_from(self, teacher_dir: Path) -> None:
        """Take the outputs of a finished run as targets.

        Raises:
            FileNotFoundError: the run is not finished.
            ValueError: token vectors are configured, but a network has none, or the student is wider.
        """
        require_finished(teacher_dir)
        tokenizer = Tokenizer.from_file(str(teacher_dir / "tokenizer.json"))
        model = load_run_model(teacher_dir)
        neighbours = {}
        if self.config.replace_share:
            words = chain.from_iterable(text.split() for text in self.data.train.texts)
            candidates = (piece for piece in self.start.tokenizer.get_vocab() if piece.isalpha() and len(piece) > 1)
            neighbours = neighbours_of(words, candidates, tokenizer, model.embedding.weight.detach())
        model, directions = model.to(self.device), []
        if self.config.token_vectors_weight:
            shape = self.start.config
            if not isinstance(shape, EncoderConfig) or not isinstance(model.config, EncoderConfig):
                raise ValueError("token_vectors_weight: both networks must be Transformers")
            if shape.d_model > model.config.d_model:
                raise ValueError(f"token_vectors_weight: the student is wider than {teacher_dir}")
            sample = encode(tokenizer, self.data.train, model.config.max_tokens)[:NUM_TEXTS_FOR_DIRECTIONS]
            batches = (pad(sample[first : first + 64], self.device) for first in range(0, len(sample), 64))
            directions = directions_of(model, batches, shape.num_layers, shape.d_model)
        self.teacher = Teacher(model, tokenizer, neighbours, directions)

    def batches(self, epoch: int) -> Iterator[TextBatch]:
        """Yield batches of texts of similar length, with some tokens dropped."""
        rng = np.random.default_rng((self.config.seed, epoch))
        if self.teacher is None:
            texts = [drop_tokens(ids, self.config.token_dropout, rng, self.special_ids) for ids in self.train_ids]
            judged = None
        else:
            texts_now = augment_texts(
                self.data.train.texts,
                rng,
                drop_fraction=self.config.token_dropout,
                join_fraction=self.config.join_share,
                replace_fraction=self.config.replace_share,
                neighbours=self.teacher.neighbours,
            )
            changed = LabelledTexts(texts_now, self.data.train.labels)
            texts = encode(self.start.tokenizer, changed, self.start.config.max_tokens)
            judged = encode(self.teacher.tokenizer, changed, self.teacher.model.config.max_tokens)
        for members in batches_of_similar_length(texts, self.config.batch_size, rng):
            labels_B = torch.tensor([self.data.train.labels[member] for member in members], device=self.device)
            ids_BT, mask_BT = pad([texts[member] for member in members], self.device)
            judged_ids = [judged[member] for member in members] if judged else None
            yield TextBatch(ids_BT, mask_BT, labels_B, judged_ids)

    def step(self, model: nn.Module, batch: TextBatch) -> StepOutcome:
        """Compute cross entropy with the labels, or the squared distance to the teacher's outputs."""
        if self.teacher is not None and batch.judged_ids is not None:
            loss, logits_BC = self._distance_to_teacher(self.teacher, model, batch, batch.judged_ids)
        else:
            with self._autocast():
                logits_BC = model(batch.ids_BT, batch.mask_BT).float()
            loss = self.loss_of(logits_BC, batch.labels_B)
            if self.config.r_drop and model.training:
                with self._autocast():
                    again_BC = model(batch.ids_BT, batch.mask_BT).float()
                loss = (loss + self.loss_of(again_BC, batch.labels_B)) / 2
                loss = loss + self.config.r_drop * divergence(logits_BC, again_BC)
        return StepOutcome(loss, int((logits_BC.argmax(-1) == batch.labels_B).sum()), len(batch.labels_B))

    def _distance_to_teacher(
        self, teacher: Teacher, model: Any, batch: TextBatch, judged_ids: list[NDArray[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of a student, and its logits."""
        with self._autocast():
            aim = judge(teacher, *pad(judged_ids, self.device))
            if not aim.vectors_BTE:
                logits_BC = model(batch.ids_BT, batch.mask_BT).float()
                return functional.mse_loss(logits_BC, aim.logits_BC), logits_BC
            vectors_BTE = model.token_vectors(batch.ids_BT, batch.mask_BT)
            logits_BC = model.classify(vectors_BTE[-1], batch.mask_BT).float()
        # The student's pieces are a subset of the teacher's, so equally many pieces of a text are the same pieces.
        counts_B = batch.mask_BT.sum(1).tolist()
        same_B = torch.tensor([count == len(ids_T) for count, ids_T in zip(counts_B, judged_ids, strict=True)])
        same_BT = batch.mask_BT * same_B.to(self.device)[:, None]
        distance = distance_of_tokens(vectors_BTE, aim.vectors_BTE, same_BT)
        logits_loss = functional.mse_loss(logits_BC, aim.logits_BC)
        return logits_loss + self.config.token_vectors_weight * distance, logits_BC

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure accuracy, which is the score, and calibration."""
        logits_BC = predict(model, self.validation_ids, self.device)
        quality = classification_quality(logits_BC, np.array(self.data.validation.labels))
        return {"score": quality.accuracy, "calibration_error": quality.expected_calibration_error}


def divergence(logits_BC: Tensor, others_BC: Tensor) -> Tensor:
    """Compute the symmetric Kullback-Leibler divergence of two logits, averaged over directions and batch; 0-dim."""
    log_p_BC, log_q_BC = logits_BC.log_softmax(-1), others_BC.log_softmax(-1)
    return ((log_p_BC.exp() - log_q_BC.exp()) * (log_p_BC - log_q_BC)).sum(-1).mean() / 2


def finish(trainer: Trainer, task: TextTrainingTask, command: str, console: Console) -> None:
    """Measure the kept weights, and write the record."""
    run_dir, data = trainer.run_dir, task.data
    console.print("measuring the best weights")
    fitted = _fold_temperature(trainer, task) if data.document else {}
    halve_weights(run_dir)
    about = {
        "task": TEXT_CLASSIFICATION,
        "network": NETWORKS[type(trainer.model.config)][0],
        "data": data.name,
        "num_training_examples": len(data.train),
        "labels": data.label_names,
        "bf16": task.autocast_bf16,
    } | ({"data_document": data.document} if data.document else {})
    plot_curves(trainer.history, run_dir / "curves.png")
    measured = measure(run_dir, data, trainer.device) | fitted
    end_run(trainer, command=command, about=about, measured=measured, console=console)


def _fold_temperature(trainer: Trainer, task: TextTrainingTask) -> dict[str, Any]:
    """Fit the temperature on the split that chooses, and divide the head of the kept weights by it.

    Returns:
        the figures of the fit, for the record, and the calibration error before on the split that is reported.
    """
    model, data, start = build_network(task.start.config), task.data, task.start
    weights = read_weights(trainer.run_dir)
    model.load_state_dict(weights)
    model.to(trainer.device)
    logits_BC = predict(model, task.validation_ids, trainer.device)
    fitted = fit_temperature(logits_BC, np.array(data.validation.labels))
    reported_BC = predict(model, encode(start.tokenizer, data.reported, start.config.max_tokens), trainer.device)
    before = classification_quality(reported_BC, np.array(data.reported.labels)).expected_calibration_error
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name] / fitted.temperature
    write_bytes(trainer.run_dir / WEIGHTS, save(weights))
    return {
        "measured_on": data.reported_name,
        "calibration_error_before_temperature": before,
        "temperature": {"chosen_on": "validation"} | fitted.as_dict(),
    }


def measure(run_dir: Path, data: TextClassificationData, device: torch.device) -> dict[str, Any]:
    """Measure a run's weights on the split that figures are reported on."""
    model, split = load_run_model(run_dir).to(device), data.reported
    tokenizer = Tokenizer.from_file(str(run_dir / "tokenizer.json"))
    logits_BC = predict(model, encode(tokenizer, split, model.config.max_tokens), device)
    quality = classification_quality(logits_BC, np.array(split.labels)).as_dict()
    if data.document:
        quality |= single_label_quality(logits_BC, np.array(split.labels), data.label_names).as_dict()
    return {"quality": quality}


def encode(tokenizer: Tokenizer, split: LabelledTexts, max_tokens: int) -> list[NDArray[np.int64]]:
    """Tokenize each text; texts beyond the limit are truncated."""
    return [np.array(encoding.ids[:max_tokens]) for encoding in tokenizer.encode_batch(split.texts)]


def drop_tokens(
    ids_T: NDArray[np.int64], fraction: float, rng: np.random.Generator, special_ids: list[int]
) -> NDArray[np.int64]:
    """Drop tokens at random, as augmentation; special tokens such as [CLS] stay."""
    if fraction == 0.0:
        return ids_T
    kept_T = rng.random(len(ids_T)) >= fraction
    return ids_T[kept_T | np.isin(ids_T, special_ids)]


def batches_of_similar_length(
    texts: list[NDArray[np.int64]],
    batch_size: int,
    rng: np.random.Generator,
    window: int = 50,
) -> list[NDArray[np.int64]]:
    """Make random batches of texts of similar length: sort within windows of `window` batches, then shuffle."""
    order = rng.permutation(len(texts))
    lengths = np.array([len(text) for text in texts])
    batches = []
    for start in range(0, len(order), batch_size * window):
        chunk = order[start : start + batch_size * window]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[first : first + batch_size] for first in range(0, len(chunk), batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]


def pad(texts: list[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad ids to the longest, [B, T], and return the mask of real tokens [B, T]; int64."""
    longest = max(len(ids_T) for ids_T in texts)
    ids_BT = np.full((len(texts), longest), PAD_ID, dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for row, ids_T in enumerate(texts):
        ids_BT[row, : len(ids_T)] = ids_T
        mask_BT[row, : len(ids_T)] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)


@torch.inference_mode()
def predict(
    model: nn.Module,
    texts: list[NDArray[np.int64]],
    device: torch.device,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Compute logits [B, C] in the given order; float32, without dropout."""
    model.eval()
    order = np.argsort([len(ids_T) for ids_T in texts], kind="stable")
    parts = [
        model(*pad([texts[member] for member in order[first : first + batch_size]], device)).float().cpu().numpy()
        for first in range(0, len(order), batch_size)
    ]
    logits_BC = np.concatenate(parts)
    return logits_BC[np.argsort(order)]


def build_network(config: NetworkConfig) -> nn.Module:
    """Build a network with random weights."""
    return NETWORKS[type(config)][1](config)


def load_run_model(run_dir: Path) -> Any:
    """Load the best network of a run, in float32, ready to predict; its shape is its `config`."""
    return read_network(run_dir, NETWORKS)


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Plot accuracy on both splits and training loss by epoch."""
    pyplot = pyplot_without_a_screen()
    epochs = range(1, len(history) + 1)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(
        epochs,
        [entry["train_accuracy"] for entry in history],
        label="train (with dropout)",
    )
    left.plot(epochs, [entry["score"] for entry in history], label="validation")
    left.set(xlabel="epoch", ylabel="accuracy")
    left.legend()
    right.plot(epochs, [entry["train_loss"] for entry in history])
    right.set(xlabel="epoch", ylabel="training loss")
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)
