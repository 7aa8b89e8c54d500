"""The training loop of all networks: it takes a task and a network, and yields the best weights and a history.

    batches of (seed, epoch) ──> loss ──> step ──> running mean of the weights ──> validation ──> best weights kept

A run can be stopped at any moment and sliced (`time_budget_s`): it resumes from its checkpoint to the same weights, bit
for bit, as an unbroken run on the same machine. Therefore every random choice depends on (seed, epoch), and a
checkpoint within an epoch keeps the state of torch's generators. (Another number of threads counts as another machine,
because sums in another order round differently.)
"""

import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor, nn

from export.finished_runs import CHECKPOINT
from export.provenance import commit_of_this_tree, hardware
from export.stopping import stopping_later
from export.whole_files import write_bytes

CHECKPOINT_INTERVAL_S = 300.0  # within an epoch; bounds the loss when a machine fails
WEIGHTS = "model.safetensors"
STOP = "stopping after this step, with a checkpoint; once more stops at once"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The settings of every training run; tasks add their own."""

    seed: int = 1
    epochs: int = 6
    patience: int = 4  # epochs without a better score before the run stops
    learning_rate: float = 5e-4
    warmup_share: float = 0.1  # fraction of all steps; then the rate falls to zero along a cosine
    weight_decay: float = 0.05
    ema_decay: float = 0.999  # decay of the running mean of the weights, which is validated and kept


class StepOutcome(NamedTuple):
    """The result of one batch: its mean loss, and how many of its `total` decisions were right."""

    loss: Tensor
    correct: int
    total: int


class TrainingTask(Protocol):
    """The task that is trained: its batches, loss and measure of success."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""

    def batches(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of an epoch; equal calls yield equal batches."""

    def step(self, model: nn.Module, batch: Any) -> StepOutcome:
        """Compute the loss of a batch, with gradients."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the validation split; `score` is among the figures, and higher is better."""


@dataclass
class _Epoch:
    """The progress of the current epoch."""

    steps: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0


class Trainer:
    """One run: weights, optimiser, history, and where they are kept."""

    def __init__(
        self,
        task: TrainingTask,
        model: nn.Module,
        ema_model: nn.Module,
        config: TrainerConfig,
        run_dir: Path,
        device: torch.device,
        lr_scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        """Set up.

        Args:
            task: the task.
            model: the network; weights without a gradient stay unchanged.
            ema_model: a network of the same shape, for the running mean of the weights.
            config: the settings of training.
            run_dir: the run folder.
            device: the device that computes.
            lr_scale: the factor of the learning rate by a weight's name.
        """
        self.task, self.config, self.run_dir, self.device = task, config, run_dir, device
        self.model, self.ema_model = model.to(device), ema_model.to(device)
        self.ema_model.load_state_dict(self.model.state_dict())
        weights_by_rate: dict[float, list[Tensor]] = {}
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                weights_by_rate.setdefault(config.learning_rate * lr_scale(name), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [{"params": weights, "lr": rate} for rate, weights in weights_by_rate.items()],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_fraction)
        self.history: list[dict[str, float]] = []
        self.hardware_s: dict[str, float] = {}  # seconds of training by hardware
        self.commits: list[str] = []  # commits of the training code; several if it changed between slices
        self._epoch = _Epoch()
        self._generators: dict[str, Tensor] = {}

    def _lr_fraction(self, step: int) -> float:
        """Return the fraction of the learning rate: linear warm-up, then a cosine to zero at the last step."""
        total = self.config.epochs * self.task.steps_per_epoch
        warmup = max(1, int(total * self.config.warmup_share))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def resume(self, console: Console) -> None:
        """Load the checkpoint of an earlier, unfinished run.

        Raises:
            ValueError: the checkpoint belongs to a run with other settings.
        """
        path = self.run_dir / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != dataclasses.asdict(self.config):
            raise ValueError(f"{path} belongs to a run with other settings; name another folder with --run-dir")
        self.model.load_state_dict(state["model"])
        self.ema_model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.hardware_s, self.commits = state["history"], state["hardware_s"], state["commits"]
        self._epoch, self._generators = _Epoch(**state["epoch"]), state["generators"]
        console.print(f"resuming {path} after epoch {len(self.history)} and {self._epoch.steps} steps")

    def _save_checkpoint(self) -> None:
        """Write the checkpoint; an interruption or a full disk leaves the last complete one."""
        state = {
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.ema_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "hardware_s": self.hardware_s,
            "commits": self.commits,
            "epoch": dataclasses.asdict(self._epoch),
            "generators": self._generator_states() if self._epoch.steps else {},
        }
        # In memory first: torch reports a full disk without its error number.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.run_dir / CHECKPOINT, buffer.getbuffer())

    def _generator_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _seed_generators(self) -> None:
        if not self._generators:
            torch.manual_seed(self.config.seed * 10_000 + len(self.history))
            return
        torch.set_rng_state(self._generators["cpu"].cpu())
        if "cuda" in self._generators:
            torch.cuda.set_rng_state(self._generators["cuda"].cpu(), self.device)
        self._generators = {}

    def fit(self, console: Console, time_budget_s: float = math.inf) -> bool:
        """Train until the epochs are done, patience is over, or the time is up; False in the last case.

        The best weights so far are in `run_dir/model.safetensors`, the state is in the checkpoint.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM was received; the state after the last step is in the checkpoint.
        """
        if (commit := commit_of_this_tree()) not in self.commits:  # now: the tree may change before the end
            self.commits.append(commit)
        with stopping_later(STOP) as stops:
            return self._fit(console, time.perf_counter() + time_budget_s, stops)

    def _fit(self, console: Console, ends_s: float, stops: Sequence[int]) -> bool:
        """Train as `fit` does, until `time.perf_counter()` is `ends_s` or `stops` has a signal."""
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  train {task.fields[train]:.1%}  val {task.fields[val]:.2%}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        per_epoch = self.task.steps_per_epoch
        # A log gets lines instead of a redrawn bar.
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task(
                "",
                total=self.config.epochs * per_epoch,
                completed=len(self.history) * per_epoch + self._epoch.steps,
                epoch=len(self.history) + 1,
                loss=math.nan,
                train=0.0,
                val=self.history[-1]["score"] if self.history else 0.0,
            )

            def show(saved: bool) -> None:
                loss, train = self._epoch.loss_sum / self._epoch.count, self._epoch.correct / self._epoch.count
                progress.update(bar, advance=1, loss=loss, train=train)
                if saved and not console.is_terminal:
                    steps = f"{self._epoch.steps} of {per_epoch} steps"
                    console.print(
                        f"epoch {len(self.history) + 1}, {steps}: loss {loss:.3f}, train {train:.1%}; {self._time()}"
                    )

            while len(self.history) < self.config.epochs and not stops:
                if self._out_of_patience():
                    console.print(f"no better score for {self.config.patience} epochs: stopped early")
                    break
                if not self._train_epoch(ends_s, stops, show):
                    if not stops:
                        console.print(
                            f"the time is up after {self.training_s:.0f} s of training in total;"
                            " run the command again to resume"
                        )
                    return False
                measured = self._measured()
                self.history.append(measured)
                self._epoch = _Epoch()
                if len(self.history) - 1 == best_epoch(self.history):
                    weights = {name: value.contiguous() for name, value in self.ema_model.state_dict().items()}
                    write_bytes(self.run_dir / WEIGHTS, save(weights))
                self._save_checkpoint()
                progress.update(bar, epoch=len(self.history) + 1, val=measured["score"])
                figures = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
                console.print(f"epoch {len(self.history)} of {self.config.epochs}: {figures}; {self._time()}")
        return True

    @property
    def training_s(self) -> float:
        """Training time in seconds, over all slices."""
        return sum(self.hardware_s.values())

    def _time(self) -> str:
        """Format the elapsed time and, if all epochs are trained, the remaining time."""
        per_epoch = self.task.steps_per_epoch
        done = len(self.history) * per_epoch + self._epoch.steps
        left_s = self.training_s / done * (self.config.epochs * per_epoch - done)
        return f"{self.training_s:.0f} s, about {left_s / 60:.0f} min left"

    def _measured(self) -> dict[str, float]:
        progress = self._epoch
        return {
            "train_loss": progress.loss_sum / progress.count,
            "train_accuracy": progress.correct / progress.count,
            **self.task.validate(self.ema_model),
        }

    def _out_of_patience(self) -> bool:
        return bool(self.history) and len(self.history) - 1 - best_epoch(self.history) >= self.config.patience

    def _train_epoch(self, ends_s: float, stops: Sequence[int], show: Callable[[bool], None]) -> bool:
        """Train the rest of the current epoch; False when the time was up, or a signal came, before its end.

        Args:
            ends_s: on `time.perf_counter()`'s clock.
            stops: has a signal as soon as one is received.
            show: called after each step; with True when a checkpoint comes next.
        """
        self._seed_generators()
        self.model.train()
        here = hardware(self.device)
        saved_s = counted_s = time.perf_counter()
        for batch in islice(self.task.batches(len(self.history)), self._epoch.steps, None):
            outcome = self.task.step(self.model, batch)
            self.optimizer.zero_grad(set_to_none=True)
            outcome.loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self._update_average(len(self.history) * self.task.steps_per_epoch + self._epoch.steps)
            self._epoch.steps += 1
            self._epoch.loss_sum += outcome.loss.item() * outcome.total
            self._epoch.correct += outcome.correct
            self._epoch.count += outcome.total
            now_s = time.perf_counter()
            self.hardware_s[here] = self.hardware_s.get(here, 0.0) + now_s - counted_s
            counted_s = now_s
            unfinished = self._epoch.steps < self.task.steps_per_epoch
            ending = now_s >= ends_s or bool(stops)
            save = unfinished and (ending or now_s - saved_s > CHECKPOINT_INTERVAL_S)
            show(save)
            if save:
                self._save_checkpoint()
                saved_s = counted_s = time.perf_counter()
                if ending:
                    return False
        return True

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # Early on the mean must forget faster, or it stays near the random start.
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        for mean, weight in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
            if weight.requires_grad:
                mean.lerp_(weight, 1 - decay)
        # Running statistics (of batch normalisation) are means already.
        for statistic, value in zip(self.ema_model.buffers(), self.model.buffers(), strict=True):
            statistic.copy_(value)


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the epoch whose weights are kept, from 0: the first one with the best score."""
    return int(np.argmax([entry["score"] for entry in history]))


def this_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bfloat16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        is_supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return is_supported
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
