"""Feature extraction: encoders of texts whose answer is a vector, from Hugging Face or sentence-transformers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from export.conversion.classifier import convert
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.opening import feature_extraction_of
from export.conversion.model_folder.task import Preprocessing
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.task_table import FEATURE_EXTRACTION
from export.tasks.embedding import EmbeddingTask
from export.tasks.task import Target
from model_store.folder import Manifest

NUM_MEASURED = 100  # texts whose cosines are measured in each precision, of those that are compared with PyTorch
NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS = 6, 96  # texts of each kind, and words of a long one
MADE_UP = "made-up sentences"


@dataclass(frozen=True)
class Texts:
    """Texts to measure vectors on; they need no labels, because PyTorch's vectors are the expected ones."""

    inputs: list[str]


class FeatureExtraction(EmbeddingTask[Texts]):
    """Encoders of texts that answer with a vector."""

    name = FEATURE_EXTRACTION

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert an encoder; what a lossy precision costs is measured on generated sentences."""
        from export.conversion.text_checkpoint import embedding_of_hugging_face  # imports transformers: seconds

        compared = made_up_sentences(MIN_COMPARED)
        texts = Texts(compared[:NUM_MEASURED])
        loaded = embedding_of_hugging_face(source)
        # The vectors of a graph without PyTorch weights can be compared with nothing but those of a lossy form of it.
        measurable = target.precision != "float32" or not loaded.lacks_weights
        convert(
            loaded,
            self,
            name=target.name,
            store=target.store,
            precision=target.precision,
            console=console,
            compare_on=compared,
            labelled=texts if measurable else None,
            split=MADE_UP,
            about={"measured_on": MADE_UP},
        )

    def material(self, known: Collection[Any]) -> Mapping[str, Texts] | None:
        """Generate the sentences that every model of the task is measured on."""
        return {MADE_UP: Texts(made_up_sentences(NUM_MEASURED))} if MADE_UP in known else None

    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Tokenize; a text beyond the limit is truncated."""
        texts = feature_extraction_of(folder, manifest)
        return Preprocessing(
            golden_input=lambda example: example.inputs["text"],
            item=lambda given: texts.preprocess(given, truncate=True, field="text"),
            collate=texts.collate,
        )

    def invented_inputs(self, folder: Path) -> Sequence[str]:
        """Generate texts of unrelated words."""
        return invented_texts(folder, NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS)


TASK = FeatureExtraction()
