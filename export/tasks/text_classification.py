"""Text classification: SST-2, encoders, and Hugging Face's BERT, DistilBERT and RoBERTa."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from export.conversion.comparison.explanation import Arrays
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.opening import text_classification_of
from export.conversion.model_folder.task import Preprocessing
from export.conversion.model_source import Labelled, text_source_of_run
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.conversion.text_source import TextClassifierSource
from export.data.text_classification import SST2, LabelledTexts, load_everyday, load_sst2
from export.markdown import table
from export.networks.transformer import TextClassifier
from export.onnx_graphs.explanation_modules import ExplainedTextClassifier
from export.onnx_graphs.import_weights import StoredNetwork
from export.task_table import TEXT_CLASSIFICATION
from export.tasks.classification import ClassificationTask
from export.tasks.run_tables import HOW, accuracy, best_first, how
from export.tasks.task import Records, ReportSection, Target
from export.training.text_classifier import measure, train_text_classifier
from export.training.text_recipes import RECIPES, TextTrainConfig
from export.training.trainer import this_device
from model_store.folder import GoldenExample, Manifest

NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS = 6, 96  # texts of each kind, and words of a long one


def report_section(records: Records) -> str:
    """Write the section on the classifiers of SST-2, best first."""
    columns = (
        "run",
        "network",
        "weights from",
        "teacher",
        "training examples",
        "parameters",
        "accuracy % (standard error)",
        "F1",
        "calibration error",
        *HOW,
    )
    rows = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["config"]["start_from"],
            record["config"]["teacher"] or "none",
            f"{record['num_training_examples']:,}",
            f"{record['num_parameters'] / 1e6:.2f} M",
            accuracy(record),
            f"{record['quality']['f1_macro']:.4f}",
            f"{record['quality']['expected_calibration_error']:.4f}",
            *how(record),
        ]
        for name, record in best_first(records)
    ]
    lines = [
        "",
        "## Sentiment (SST-2)",
        "",
        "The runs were trained on the phrases and sentences of the training split of SST-2 (GLUE), and measured on its"
        " validation sentences. The epoch of each run, and the seed of sentiment-minilm, were chosen on the same"
        " validation sentences, so the accuracy is optimistic. The weights were rounded to half precision before the"
        " measurement, as they are served.",
        "",
        "`weights from` names the weights at the start of training: `scratch` are random weights; `minilm` is the"
        " pre-trained MiniLM; `minilm-shape` is a network of MiniLM's shape with random weights; `minilm-words` is a"
        " smaller network that starts with part of MiniLM's word vectors and is random otherwise. A run with a"
        " teacher learns the teacher's logits instead of the labels.",
        *table(columns, rows),
        "",
        "![validation accuracy by minutes of training](models-sentiment-curves.png)",
        "",
        "![confusion matrices](models-sentiment-confusion.png)",
    ]
    return "\n".join(lines) + "\n"


class TextClassification(ClassificationTask[TextTrainConfig]):
    """Text classifiers."""

    name = TEXT_CLASSIFICATION
    data_name = SST2
    recipes = RECIPES
    validation_sets = ("sst2",)
    explained_network = TextClassifier
    report = ReportSection(
        place=1, subject="sentiment", curve_measure="accuracy", write=report_section, has_confusion=True
    )

    def train(
        self, config: TextTrainConfig, run_dir: Path, console: Console, time_budget_s: float, command: str
    ) -> bool:
        """Train on SST-2."""
        return train_text_classifier(load_sst2(), config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the validation split."""
        self.require_known_data(run_dir, result)
        return measure(run_dir, load_sst2(), this_device())

    def source_of_run(self, run_dir: Path) -> TextClassifierSource:
        """Load a finished run."""
        return text_source_of_run(run_dir)

    def measured_inputs(self) -> dict[str, Any]:
        """Load SST-2's validation split and the everyday sentences."""
        validation = load_sst2().validation
        return {
            "compare_on": validation.texts,
            "labelled": validation,
            "also_measured_on": {"everyday sentences (tests/data)": load_everyday()},
        }

    def made_up_inputs(self, count: int) -> list[str]:
        """Generate sentences."""
        return made_up_sentences(count)

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a Hugging Face text classifier, and measure it on SST-2 if `validate_on` says so.

        Raises:
            ValueError: the model's classes are not those of the data set.
        """
        from export.conversion.text_checkpoint import classifier_of_hugging_face  # imports transformers: seconds

        loaded = classifier_of_hugging_face(source)
        labelled: LabelledTexts | None = None
        about = {}
        if validate_on == "sst2":
            data = load_sst2()
            if [label.upper() for label in loaded.labels] != data.label_names:
                classes = ", ".join(loaded.labels)
                raise ValueError(f"--validate-on sst2 has {', '.join(data.label_names)}; this model has {classes}")
            labelled, about = data.validation, {"measured_on": data.name}
        compare_on = labelled.texts if labelled else made_up_sentences(MIN_COMPARED)
        self.write_model(loaded, target, console, compare_on=compare_on, labelled=labelled, about=about)

    def material(self, known: Collection[Any]) -> Mapping[str, Labelled] | None:
        """Load SST-2's validation split."""
        return {"validation": load_sst2().validation} if SST2 in known else None

    def explained(self, stored: StoredNetwork, folder: Path) -> ExplainedTextClassifier:
        """Explain a class by tokens."""
        assert isinstance(stored.module, TextClassifier)
        return ExplainedTextClassifier(stored.module)

    def input_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Return the ids."""
        input_ids = np.array(example.tensors["input_ids"])
        return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}

    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Tokenize; a text beyond the limit is truncated."""
        texts = text_classification_of(folder, manifest)
        return Preprocessing(
            golden_input=lambda example: example.inputs["text"],
            item=lambda given: texts.preprocess(given, truncate=True, field="text"),
            collate=texts.collate,
        )

    def invented_inputs(self, folder: Path) -> Sequence[str]:
        """Generate texts of unrelated words."""
        return invented_texts(folder, NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS)


TASK = TextClassification()
