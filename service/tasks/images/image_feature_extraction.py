"""Encoded image to vector: feature extraction.

image file ── `ImagePreprocessing` ──> graph ──> pooled vector ── cut to `dimensions`, scaled to length 1 ──> embedding
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import msgspec

from service.errors import InvalidRequest
from service.tasks.embedding import Embedder
from service.tasks.hub_messages import HubOptions, PositiveWhole, whole
from service.tasks.images.preprocessing import ImagePreprocessing, PreprocessorConfig
from service.tasks.stored_task import HubCall, TaskFiles
from service.tasks.task import AnswerOptions


class ImageEmbeddingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`task.json` of a model that embeds images.

    Attributes:
        dimensions: elements of a vector.
        normalize: whether vectors are scaled to length 1 where a request does not say; `transformers` does not.
    """

    dimensions: int
    normalize: bool = False


class ImageEmbeddingParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face image-feature-extraction task.

    `pool` asks for the vector of the whole image, which is the only answer that is offered.
    """

    normalize: bool | None = None
    dimensions: PositiveWhole | None = None
    pool: bool | None = None


class ImageEmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face image-feature-extraction task as JSON.

    `inputs` is the image in base64, or a data URL of it.
    """

    inputs: str
    parameters: ImageEmbeddingParameters | None = None
    options: HubOptions | None = None


class ImageFeatureExtraction(ImagePreprocessing, Embedder):
    """Images to vectors."""

    name: ClassVar[str] = "image-feature-extraction"
    answers_lists: ClassVar[bool] = False
    explainable: None = None
    hub_request: ClassVar[type[msgspec.Struct]] = ImageEmbeddingRequest
    example: ClassVar[str | None] = "--data-binary @docs/ship.jpg"

    def __init__(self, config: PreprocessorConfig, *, settings: ImageEmbeddingSettings, graph_input: str) -> None:
        """Set up from the contents of a model folder.

        Args:
            config: how images are resized, cropped and normalised.
            settings: the width of vectors, and whether they are scaled.
            graph_input: the name of the graph's only input.
        """
        ImagePreprocessing.__init__(self, config, graph_input)
        Embedder.__init__(self, dimensions=settings.dimensions, normalize=settings.normalize)

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        config, graph_input = cls.preprocessor_of(files, graph_inputs)
        return cls(config, settings=files.settings(ImageEmbeddingSettings), graph_input=graph_input)

    def read_hub(self, request: ImageEmbeddingRequest | bytes) -> HubCall:
        """Read a request of the task API: JSON, or the file that is its body."""
        if isinstance(request, bytes):
            return HubCall([request], "the body")
        parameters = request.parameters or ImageEmbeddingParameters()
        if parameters.pool is False:
            raise InvalidRequest("parameter 'pool' is false; only the vector of the whole image is offered")
        dimensions = self.check_dimensions(whole("dimensions", parameters.dimensions))
        answer = AnswerOptions(normalize=parameters.normalize, dimensions=dimensions)
        return HubCall([request.inputs.encode()], "inputs", answer=answer)
