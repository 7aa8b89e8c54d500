"""Encoded image to label: an image classifier.

    image file ── `ImagePreprocessing` ──> graph ──> logits ──> label

Shapes: C classes or, of pixels, channels, H height, W width.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.tasks.classification import SINGLE_LABEL, Classifier, ClassifierSettings
from service.tasks.explainable import ImageParts, ValueFunction
from service.tasks.hub_messages import (
    HUB_TOP_K,
    ImageClassificationParameters,
    ImageClassificationRequest,
    refuse_stream,
)
from service.tasks.images.image_file import DecodingMemory
from service.tasks.images.preprocessing import ImagePreprocessing, Pixels, PreprocessorConfig
from service.tasks.stored_task import Example, HubCall, TaskFiles
from service.tensors import Arrays


class ImageClassification(ImagePreprocessing, Classifier):
    """Preprocessing and postprocessing of an image classifier."""

    name: ClassVar[str] = "image-classification"
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = ImageClassificationRequest
    example: ClassVar[str | None] = "--data-binary @docs/ship.jpg"

    def __init__(
        self,
        config: PreprocessorConfig,
        *,
        labels: Sequence[str],
        graph_input: str,
        settings: ClassifierSettings = SINGLE_LABEL,
    ) -> None:
        """Set up from the contents of a model folder.

        Args:
            config: how images are resized, cropped and normalised.
            labels: names of the classes, in the order of their numbers.
            graph_input: the name of the graph's only input.
            settings: what the logits are.
        """
        ImagePreprocessing.__init__(self, config, graph_input)
        Classifier.__init__(self, labels, settings)

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        config, graph_input = cls.preprocessor_of(files, graph_inputs)
        settings = files.settings(ClassifierSettings)
        return cls(config, labels=files.labels, graph_input=graph_input, settings=settings)

    @property
    def explainable(self) -> Self:
        """The task itself: patches can be taken away."""
        return self

    def read_hub(self, request: ImageClassificationRequest | bytes) -> HubCall:
        """Read a request of the task API: JSON, or the file that is its body."""
        if isinstance(request, bytes):
            image, field, parameters = request, "the body", ImageClassificationParameters()
        else:
            refuse_stream(request)
            image, field = request.inputs.encode(), "inputs"
            parameters = request.parameters or ImageClassificationParameters()
        answer = parameters.answer_options(HUB_TOP_K)
        return HubCall([image], field, answer=answer, explain=parameters.explain)

    def parts(
        self,
        given: bytes,
        item: Pixels,
        *,
        truncate: bool,
        field: str,
        max_image_pixels: int,
        memory: DecodingMemory | None,
    ) -> ImageParts:
        """Return the pixels whose patches can be taken away, and the image for people."""

        def picture(side: int) -> Image.Image:
            return self.picture(given, field=field, side=side, max_image_pixels=max_image_pixels, memory=memory)

        return ImageParts(item.pixels_CHW, picture)

    def value_function(self, item: Pixels, result: NDArray[np.float32], target: int | None) -> ValueFunction:
        """Return the probability of a class as a function of the pixels that are kept."""
        return self.class_value_function(result, target, Pixels, partial(image_row, item.pixels_CHW))

    def golden_row(self, item: Pixels, example: Example, target: int | None) -> Arrays:
        """Make the explanation graph's input for a golden example."""
        assert target is not None
        return image_row(item.pixels_CHW, target)


def image_row(pixels_CHW: NDArray[np.float32], target: int) -> Arrays:
    """Make the explanation graph's input for an image, as the served graph takes it, and the explained class."""
    return {"pixel_values": pixels_CHW, "target": np.array(target)}
