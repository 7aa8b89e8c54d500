"""Training on images as a task of `export.training.trainer`: augmented batches, loss and score.

Shapes: B images of a batch, N images of a split, C channels, H height, W width, K classes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.data.own.images import ImageFilesData
from export.data.own.labels import MULTI_LABEL
from export.training.fine_tuning.images.settings import ImageFineTuneConfig, shape_of_images
from export.training.fine_tuning.images.starting_point import ImagePreparation
from export.training.fine_tuning.objectives import objective_of
from export.training.image_augmentation import Augmentation, augmented, normalised
from export.training.trainer import StepOutcome, bf16_is_fast
from service.tasks.images.preprocessing import PreprocessorConfig


class ImageNetwork(nn.Module):
    """An image classifier of `transformers` that takes levels between -1 and 1 and returns only its logits."""

    def __init__(self, model: Any, settings: PreprocessorConfig) -> None:
        super().__init__()
        self.model = model
        self.config = shape_of_images(model.config, settings.pixels[0])
        mean_C, std_C = torch.tensor(settings.image_mean), torch.tensor(settings.image_std)
        # Of the network's own input: (level * rescale_factor - mean) / std, where level is (x + 1) * 127.5.
        scale_C = 127.5 * settings.rescale_factor / std_C
        self.scale_C11: Tensor
        self.shift_C11: Tensor
        self.register_buffer("scale_C11", scale_C[:, None, None], persistent=False)
        self.register_buffer("shift_C11", (scale_C - mean_C / std_C)[:, None, None], persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Classify images, float32 [B, 3, H, W] between -1 and 1; return logits [B, K]."""
        logits_BK: Tensor = self.model(pixel_values=x_BCHW * self.scale_C11 + self.shift_C11).logits
        return logits_BK


class OwnImageBatch(NamedTuple):
    """One step's images, augmented."""

    x_BCHW: Tensor
    targets_BK: Tensor  # the fraction of each class, or the presence of each label


class OwnImageTask:
    """The task of image classification; pixels stay on the device as bytes."""

    def __init__(
        self,
        data: ImageFilesData,
        config: ImageFineTuneConfig,
        preparation: ImagePreparation,
        device: torch.device,
    ) -> None:
        self.data, self.config, self.preparation, self.device = data, config, preparation, device
        self.autocast_bf16 = bf16_is_fast(device)
        self.objective = objective_of(data, config, device)
        self.train_pixels = torch.from_numpy(data.train.prepared(preparation.settings)).to(device)
        self.validation_pixels = data.validation.prepared(preparation.settings)
        targets = self.objective.targets(data.train.labels)
        self.several = data.problem == MULTI_LABEL
        targets_NK = targets if self.several else functional.one_hot(targets, len(data.label_names)).float()
        self.targets_NK = targets_NK.to(device)
        # Batches of equal size: batch normalisation needs several images.
        self.steps_per_epoch = max(1, len(data.train) // config.batch_size)
        side = preparation.settings.pixels[0]
        self._augmentation = Augmentation(
            crop_padding=int(side * config.crop_share),
            flip=config.flip,
            cutout=int(side * config.cutout_share),
            mix=config.mix,
            jpeg=config.jpeg,
        )

    def batches(self, epoch: int) -> Iterator[OwnImageBatch]:
        """Yield batches of all images, augmented."""
        generator = torch.Generator().manual_seed(self.config.seed * 10_000 + epoch)
        order = torch.randperm(len(self.data.train), generator=generator)
        for step, part in enumerate(torch.tensor_split(order, self.steps_per_epoch)):
            # Each batch has its own generator, so that its random choices do not depend on earlier batches.
            drawn = torch.Generator().manual_seed((self.config.seed * 10_000 + epoch) * 100_000 + step)
            members = part.to(self.device)
            x_BCHW, _, targets_BK = augmented(
                self.train_pixels[members], self.targets_NK[members], self._augmentation, drawn
            )
            yield OwnImageBatch(x_BCHW, targets_BK)

    def step(self, model: nn.Module, batch: OwnImageBatch) -> StepOutcome:
        """Compute the loss of the problem, and count the right decisions."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16):
            logits_BK = model(batch.x_BCHW).float()
        decided = batch.targets_BK > 0.5 if self.several else batch.targets_BK.argmax(1)
        right = self.objective.correct(logits_BK.detach(), decided)
        return StepOutcome(self.objective.loss(logits_BK, batch.targets_BK), int(right.sum()), right.numel())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the choosing split; the score depends on the problem."""
        return self.objective.score(self.predict(model, self.validation_pixels), self.data.validation.labels)

    def predict(self, model: nn.Module, pixels_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute logits [N, K]."""
        return predict_images(model, pixels_NCHW, self.device)


@torch.inference_mode()
def predict_images(
    model: nn.Module, pixels_NCHW: NDArray[np.uint8], device: torch.device, batch_size: int = 128
) -> NDArray[np.float32]:
    """Compute logits [N, K] of prepared images; float32, without dropout."""
    model.eval()
    starts = range(0, len(pixels_NCHW), batch_size)
    parts = [
        model(normalised(torch.from_numpy(pixels_NCHW[first : first + batch_size]).to(device))) for first in starts
    ]
    logits_NK: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return logits_NK
