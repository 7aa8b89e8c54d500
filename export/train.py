"""Trains a text classifier, from a data set to a run folder.

    texts ──> tokenizer ──> ids ──> batches of similar length ──> steps ──> validation each epoch ──> best weights

A run folder holds `tokenizer.json`, `model.json` (the network's shape), `model.safetensors` (the best weights),
`result.json` (what was measured, and how), `curves.png`, and `checkpoint.pt` while the run is unfinished. A run that
was stopped goes on from its checkpoint when the same command is given again, to the same result.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.data import LabelledTexts, TextClassificationData
from export.evaluate import classification_quality
from export.provenance import commit_of_this_tree, hardware, this_command
from export.tokenizer import train_tokenizer
from export.transformer import EncoderConfig, TextClassifier

PAD_ID = 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a text classifier is trained. The defaults are the recipe of the committed sentiment model."""

    seed: int = 1
    epochs: int = 6
    patience: int = 4  # epochs without a better validation accuracy before the run stops
    batch_size: int = 64
    learning_rate: float = 5e-4
    warmup_share: float = 0.1  # of all steps; then the rate falls to zero along a cosine
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    token_dropout: float = 0.3  # share of tokens left out of each training text, anew each epoch
    ema_decay: float = 0.999  # the weights that are validated and kept: a running mean over steps
    vocab_size: int = 8000
    model: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(
            vocab_size=8000,
            num_labels=2,
            d_model=128,
            num_layers=2,
            num_heads=4,
            d_ff=256,
            dropout=0.3,
            pooling="max",
        )
    )


def train_text_classifier(data: TextClassificationData, config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Train, or go on training, until the epochs are done or validation no longer improves.

    Raises:
        ValueError: `run_dir` holds a run with another configuration.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / "result.json").exists():
        console.print(f"{run_dir} holds a finished run; remove the folder, or name another, to train again")
        return
    tokenizer = train_tokenizer(data.train.texts, config.vocab_size, config.model.max_tokens)
    tokenizer.save(str(run_dir / "tokenizer.json"))
    # A small data set gives fewer pieces than were asked for.
    model_config = dataclasses.replace(
        config.model,
        vocab_size=tokenizer.get_vocab_size(),
        num_labels=len(data.label_names),
    )
    (run_dir / "model.json").write_text(json.dumps(dataclasses.asdict(model_config), indent=2) + "\n")
    run = _Run(data, config, model_config, tokenizer, run_dir)
    run.resume(console)
    run.fit(console)
    run.finish(console)


class _Run:
    """The state of one training run: weights, optimiser, history. Everything random follows from (seed, epoch)."""

    def __init__(
        self,
        data: TextClassificationData,
        config: TrainConfig,
        model_config: EncoderConfig,
        tokenizer: Tokenizer,
        run_dir: Path,
    ) -> None:
        self.data, self.config, self.run_dir = data, config, run_dir
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast_bf16 = bf16_is_fast(self.device)
        self.train_ids = encode(tokenizer, data.train, model_config.max_tokens)
        self.validation_ids = encode(tokenizer, data.validation, model_config.max_tokens)
        torch.manual_seed(config.seed)
        self.model = TextClassifier(model_config).to(self.device)
        self.average = TextClassifier(model_config).to(self.device)
        self.average.load_state_dict(self.model.state_dict())
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_share)
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.history: list[dict[str, float]] = []
        self.training_s = 0.0
        self.commit = commit_of_this_tree()  # now: by the end of the run the tree may be another

    def _rate_share(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        total = self.config.epochs * self.steps_per_epoch
        warmup = max(1, int(total * self.config.warmup_share))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def resume(self, console: Console) -> None:
        """Take up the checkpoint of an earlier, unfinished run with the same configuration."""
        path = self.run_dir / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != dataclasses.asdict(self.config):
            raise ValueError(f"{path} belongs to a run with other settings; name another folder with --run-dir")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.training_s = state["history"], state["training_s"]
        console.print(f"going on after epoch {len(self.history)} of {path}")

    def _save_checkpoint(self) -> None:
        """Written beside and renamed, so that a stop in the middle leaves the last whole one."""
        state = {
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "training_s": self.training_s,
        }
        partial = self.run_dir / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.run_dir / "checkpoint.pt")

    def fit(self, console: Console) -> None:
        """Run the epochs that are left."""
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  train {task.fields[train]:.1%}  val {task.fields[val]:.2%}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        total = self.config.epochs * self.steps_per_epoch
        done = len(self.history)
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(
                "",
                total=total,
                completed=done * self.steps_per_epoch,
                epoch=done + 1,
                loss=math.nan,
                train=0.0,
                val=0.0,
            )
            for epoch in range(done, self.config.epochs):
                if self._out_of_patience():
                    console.print(f"no better validation accuracy for {self.config.patience} epochs: stopped early")
                    break
                started_s = time.perf_counter()
                measured = self._train_epoch(epoch, lambda **fields: progress.update(bar, **fields))
                self.training_s += time.perf_counter() - started_s
                measured |= self._validate()
                self.history.append(measured)
                if measured["accuracy"] == max(entry["accuracy"] for entry in self.history):
                    save_file(self.average.state_dict(), self.run_dir / "model.safetensors")
                self._save_checkpoint()
                progress.update(bar, epoch=epoch + 2, val=measured["accuracy"])
                console.print(
                    f"epoch {epoch + 1}: train loss {measured['train_loss']:.4f}, accuracy"
                    f" {measured['train_accuracy']:.2%}; validation {measured['accuracy']:.2%}; {self.training_s:.0f} s"
                )

    def _out_of_patience(self) -> bool:
        accuracies = [entry["accuracy"] for entry in self.history]
        return bool(accuracies) and len(accuracies) - 1 - int(np.argmax(accuracies)) >= self.config.patience

    def _train_epoch(self, epoch: int, show: Callable[..., None]) -> dict[str, float]:
        # Every random choice of an epoch follows from (seed, epoch): that makes a resumed run equal to an unbroken one.
        torch.manual_seed(self.config.seed * 10_000 + epoch)
        rng = np.random.default_rng((self.config.seed, epoch))
        self.model.train()
        loss_sum, correct, seen = 0.0, 0, 0
        texts = [drop_tokens(ids, self.config.token_dropout, rng) for ids in self.train_ids]
        for step, members in enumerate(batches_of_similar_length(texts, self.config.batch_size, rng)):
            input_ids, attention_mask = pad([texts[member] for member in members], self.device)
            labels_B = torch.tensor(
                [self.data.train.labels[member] for member in members],
                device=self.device,
            )
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16):
                logits_BC = self.model(input_ids, attention_mask)
            loss = self.loss_of(logits_BC.float(), labels_B)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self._update_average(epoch * self.steps_per_epoch + step)
            loss_sum += loss.item() * len(members)
            correct += int((logits_BC.argmax(-1) == labels_B).sum())
            seen += len(members)
            show(advance=1, loss=loss_sum / seen, train=correct / seen)
        return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # Early on the mean must forget faster than later, or it stays near the random start.
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)

    def _validate(self) -> dict[str, float]:
        logits_BC = predict(self.average, self.validation_ids, self.device)
        quality = classification_quality(logits_BC, np.array(self.data.validation.labels))
        return {
            "accuracy": quality.accuracy,
            "calibration_error": quality.expected_calibration_error,
        }

    def finish(self, console: Console) -> None:
        """Measure the weights that are kept, and write down what was found and how."""
        # Kept in half precision: what is measured, compared and served from here on are these rounded weights.
        weights = {name: weight.half() for name, weight in load_file(self.run_dir / "model.safetensors").items()}
        save_file(weights, self.run_dir / "model.safetensors")
        model = load_run_model(self.run_dir).to(self.device)
        logits_BC = predict(model, self.validation_ids, self.device)
        quality = classification_quality(logits_BC, np.array(self.data.validation.labels))
        accuracies = [entry["accuracy"] for entry in self.history]
        result = {
            "task": "text-classification",
            "data": self.data.name,
            "labels": self.data.label_names,
            "num_parameters": sum(weight.numel() for weight in self.model.parameters()),
            "quality": quality.as_dict(),
            "best_epoch": int(np.argmax(accuracies)) + 1,
            "training_s": round(self.training_s, 1),
            "bf16": self.autocast_bf16,
            "command": this_command(),
            "commit": self.commit,
            "hardware": hardware(self.device),
            "torch": str(torch.__version__),
            "config": dataclasses.asdict(self.config),
            "history": self.history,
        }
        plot_curves(self.history, self.run_dir / "curves.png")
        (self.run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        (self.run_dir / "checkpoint.pt").unlink()
        console.print_json(json.dumps(result["quality"]))
        console.print(f"trained in {self.training_s:.0f} s; {self.run_dir}/result.json has the whole record")


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def encode(tokenizer: Tokenizer, split: LabelledTexts, max_tokens: int) -> list[NDArray[np.int64]]:
    """The ids of each text; a training text beyond the limit is cut."""
    return [np.array(encoding.ids[:max_tokens]) for encoding in tokenizer.encode_batch(split.texts)]


def drop_tokens(ids_T: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Leave out tokens at random, as augmentation; the first, [CLS], stays."""
    if share == 0.0:
        return ids_T
    kept_T = rng.random(len(ids_T)) >= share
    kept_T[0] = True
    return ids_T[kept_T]


def batches_of_similar_length(
    texts: list[NDArray[np.int64]],
    batch_size: int,
    rng: np.random.Generator,
    window: int = 50,
) -> list[NDArray[np.int64]]:
    """Random batches whose members are of similar length: sorted within windows of `window` batches, then shuffled."""
    order = rng.permutation(len(texts))
    lengths = np.array([len(text) for text in texts])
    batches = []
    for start in range(0, len(order), batch_size * window):
        chunk = order[start : start + batch_size * window]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[first : first + batch_size] for first in range(0, len(chunk), batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]


def pad(texts: list[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T], filled with [PAD] to the longest, and the mask of the real tokens [B, T]; int64."""
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
    """Logits [B, C] for each text, in the given order; float32, dropout off."""
    model.eval()
    order = np.argsort([len(ids_T) for ids_T in texts], kind="stable")
    parts = [
        model(*pad([texts[member] for member in order[first : first + batch_size]], device)).float().cpu().numpy()
        for first in range(0, len(order), batch_size)
    ]
    logits_BC = np.concatenate(parts)
    return logits_BC[np.argsort(order)]


def load_run_model(run_dir: Path) -> TextClassifier:
    """The trained network of a run folder, in float32, ready to predict."""
    model = TextClassifier(EncoderConfig(**json.loads((run_dir / "model.json").read_text())))
    model.load_state_dict({name: weight.float() for name, weight in load_file(run_dir / "model.safetensors").items()})
    return model.eval()


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Accuracy on both splits and training loss, epoch by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = range(1, len(history) + 1)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(
        epochs,
        [entry["train_accuracy"] for entry in history],
        label="train (with dropout)",
    )
    left.plot(epochs, [entry["accuracy"] for entry in history], label="validation")
    left.set(xlabel="epoch", ylabel="accuracy")
    left.legend()
    right.plot(epochs, [entry["train_loss"] for entry in history])
    right.set(xlabel="epoch", ylabel="training loss")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
