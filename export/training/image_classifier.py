"""Trains an image classifier, from a data set to a run folder.

    pixels (uint8, all in memory) ──> augmented on the device ──> `export.training.trainer` ──> best weights, measured

`export.training.run_folder` describes the run folder.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from export.data.image_classification import ImageClassificationData, LabelledImages
from export.finished_runs import require_finished
from export.networks.image import ResNet9, ResNetConfig, VisionTransformer, VitConfig, multiply_accumulates
from export.task_table import IMAGE_CLASSIFICATION
from export.training.image_augmentation import Augmentation, augmented, jpeg_roundtrip, normalised
from export.training.quality import classification_quality
from export.training.run_folder import Networks, begin_run, end_run, halve_weights, read_network
from export.training.trainer import StepOutcome, Trainer, TrainerConfig, bf16_is_fast, this_device

NETWORKS: Networks = {
    VitConfig: ("vit", VisionTransformer),
    ResNetConfig: ("resnet9", ResNet9),
}
JPEG_QUALITY = 50  # quality of the compressed test images
SHIFT_PIXELS = 2  # shift of the moved test images


@dataclass(frozen=True, kw_only=True)
class ImageTrainConfig(TrainerConfig):
    """How an image classifier is trained. The defaults are the recipe of the lesson's vision transformer."""

    epochs: int = 20
    patience: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 128
    label_smoothing: float = 0.1
    crop_padding: int = 4  # pixels an image may be shifted by, the edge mirrored
    flip: bool = True
    cutout: int = 0  # side of a square that is blanked out; 0 for none (DeVries and Taylor 2017, arXiv 1708.04552)
    mix: float = 0.0  # fraction of the batches that are mixed with CutMix (Yun et al. 2019, arXiv 1905.04899)
    jpeg: float = 0.0  # fraction of the images that are compressed as JPEG, as in a service's requests
    # The name of a finished run beside this one whose answers are learned too (Hinton et al. 2015, arXiv 1503.02531).
    teacher: str = ""
    teacher_share: float = 0.7  # fraction of the loss
    model: VitConfig | ResNetConfig = dataclasses.field(
        default_factory=lambda: VitConfig(
            d_model=128, num_layers=4, num_heads=4, d_ff=256, dropout=0.0, positions="learned"
        )
    )


def train_image_classifier(
    data: ImageClassificationData,
    config: ImageTrainConfig,
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
        FileNotFoundError: the teacher's run is not finished.
    """
    if not begin_run(run_dir, config.model, NETWORKS):
        return True
    device = this_device()
    torch.manual_seed(config.seed)
    model, ema_model = build_network(config.model), build_network(config.model)
    task = ImageTrainingTask(data, config, device)
    if config.teacher:
        task.learn_from(run_dir.parent / config.teacher)
    trainer = Trainer(task, model, ema_model, config, run_dir, device)
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


class ImageBatch(NamedTuple):
    """One step's images, augmented and normalised."""

    pixels_BCHW: Tensor
    clean_BCHW: Tensor  # images before JPEG, for a teacher trained without it
    targets_BK: Tensor  # the fraction of each class
    labels_B: Tensor  # the class with the largest fraction


class ImageTrainingTask:
    """The task of image classification for `export.training.trainer`; pixels stay on the device as bytes."""

    def __init__(self, data: ImageClassificationData, config: ImageTrainConfig, device: torch.device) -> None:
        self.data, self.config, self.device = data, config, device
        self.autocast_bf16 = bf16_is_fast(device)
        self.train_pixels = torch.from_numpy(data.train.pixels_NCHW).to(device)
        self.train_labels = torch.from_numpy(data.train.labels_N).to(device)
        self.teacher: nn.Module | None = None
        self.steps_per_epoch = len(data.train) // config.batch_size
        if not self.steps_per_epoch:
            raise ValueError(f"batch_size {config.batch_size} is more than the {len(data.train)} training images")

    def learn_from(self, teacher_dir: Path) -> None:
        """Add the targets of a finished run, which labels every augmented image.

        Raises:
            FileNotFoundError: the run is not finished.
        """
        require_finished(teacher_dir)
        self.teacher = load_run_model(teacher_dir).to(self.device)

    def batches(self, epoch: int) -> Iterator[ImageBatch]:
        """Yield whole batches of all images, augmented by crops, flips, cutout and CutMix."""
        generator = torch.Generator().manual_seed(self.config.seed * 10_000 + epoch)
        order = torch.randperm(len(self.data.train), generator=generator)
        for step in range(self.steps_per_epoch):
            members = order[step * self.config.batch_size : (step + 1) * self.config.batch_size].to(self.device)
            # Each batch has its own generator, so that its random choices do not depend on earlier batches.
            drawn = torch.Generator().manual_seed((self.config.seed * 10_000 + epoch) * 100_000 + step)
            yield self._augmented(self.train_pixels[members], self.train_labels[members], drawn)

    def _augmented(self, pixels: Tensor, labels_B: Tensor, drawn: torch.Generator) -> ImageBatch:
        config = self.config
        augmentation = Augmentation(
            crop_padding=config.crop_padding, flip=config.flip, cutout=config.cutout, mix=config.mix, jpeg=config.jpeg
        )
        targets_BK = functional.one_hot(labels_B, len(self.data.label_names)).float()
        x_BCHW, clean_BCHW, targets_BK = augmented(pixels, targets_BK, augmentation, drawn)
        return ImageBatch(x_BCHW, clean_BCHW, targets_BK, targets_BK.argmax(dim=1))

    def step(self, model: nn.Module, batch: ImageBatch) -> StepOutcome:
        """Compute cross entropy with the labels, and with the teacher's answers for the same images."""
        pixels_BCHW = batch.pixels_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16):
            logits_BK = model(pixels_BCHW).float()
            if self.teacher is not None:
                with torch.no_grad():
                    clean_BCHW = batch.clean_BCHW.contiguous(memory_format=torch.channels_last)
                    taught_BK = torch.softmax(self.teacher(clean_BCHW).float(), dim=1)
        loss = functional.cross_entropy(logits_BK, batch.targets_BK, label_smoothing=self.config.label_smoothing)
        if self.teacher is not None:
            fraction = self.config.teacher_share
            loss = (1 - fraction) * loss + fraction * functional.cross_entropy(logits_BK, taught_BK)
        return StepOutcome(loss, int((logits_BK.argmax(1) == batch.labels_B).sum()), len(batch.labels_B))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure accuracy, which is the score, on the validation images."""
        quality = quality_of(model, self.data.validation, self.device, self.autocast_bf16)
        return {"score": quality["accuracy"], "calibration_error": quality["expected_calibration_error"]}


def quality_of(
    model: nn.Module, images: LabelledImages, device: torch.device, autocast_bf16: bool = False
) -> dict[str, Any]:
    """Measure the model's answers for these images."""
    return classification_quality(predict(model, images.pixels_NCHW, device, autocast_bf16), images.labels_N).as_dict()


@torch.inference_mode()
def predict(
    model: nn.Module,
    pixels_NCHW: NDArray[np.uint8],
    device: torch.device,
    autocast_bf16: bool = False,
    batch_size: int = 500,
) -> NDArray[np.float32]:
    """Compute logits [N, K], without dropout."""
    model.eval()
    parts = []
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast_bf16):
        for first in range(0, len(pixels_NCHW), batch_size):
            pixels = torch.from_numpy(pixels_NCHW[first : first + batch_size]).to(device)
            parts.append(model(normalised(pixels)).float().cpu().numpy())
    return np.concatenate(parts)


def jpeg_compressed(images: LabelledImages, quality: int = JPEG_QUALITY) -> LabelledImages:
    """Compress images as JPEG and decode them, because services receive JPEG files."""
    pixels = np.stack([jpeg_roundtrip(image, quality) for image in images.pixels_NCHW])
    return LabelledImages(pixels, images.labels_N)


def moved(images: LabelledImages, shift: int = SHIFT_PIXELS) -> LabelledImages:
    """Shift images down and to the right, with repeated edges."""
    padded = np.pad(images.pixels_NCHW, ((0, 0), (0, 0), (shift, 0), (shift, 0)), mode="edge")
    return LabelledImages(np.ascontiguousarray(padded[:, :, :-shift, :-shift]), images.labels_N)


def finish(trainer: Trainer, task: ImageTrainingTask, command: str, console: Console) -> None:
    """Measure the kept weights on the test split, and write the record."""
    run_dir, data = trainer.run_dir, task.data
    console.print("measuring the best weights")
    halve_weights(run_dir)
    about = {
        "task": IMAGE_CLASSIFICATION,
        "network": NETWORKS[type(trainer.model.config)][0],
        "data": data.name,
        "num_training_examples": len(data.train),
        "labels": data.label_names,
        "image_size": data.train.pixels_NCHW.shape[2],
        "multiply_accumulates": multiply_accumulates(load_run_model(run_dir), data.train.pixels_NCHW.shape[2]),
        "bf16": task.autocast_bf16,
    }
    end_run(trainer, command=command, about=about, measured=measure(run_dir, data, trainer.device), console=console)


def measure(run_dir: Path, data: ImageClassificationData, device: torch.device) -> dict[str, Any]:
    """Measure a run's weights on the test split: plain, compressed and shifted; in float32, as served."""
    model = load_run_model(run_dir).to(device)
    return {
        "quality": quality_of(model, data.test, device),
        "quality_jpeg": quality_of(model, jpeg_compressed(data.test), device) | {"jpeg_quality": JPEG_QUALITY},
        "quality_moved": quality_of(model, moved(data.test), device) | {"shift_pixels": SHIFT_PIXELS},
    }


def build_network(config: VitConfig | ResNetConfig) -> nn.Module:
    """Build the network with random weights, in the memory format that the processor prefers."""
    network: nn.Module = NETWORKS[type(config)][1](config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return] # not in torch's types


def load_run_model(run_dir: Path) -> Any:
    """Load the best network of a run, in float32, ready to predict; its shape is its `config`."""
    return read_network(run_dir, NETWORKS).to(memory_format=torch.channels_last)
