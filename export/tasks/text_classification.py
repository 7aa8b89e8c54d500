"""Text classification: SST-2, encoders, and Hugging Face's BERT, DistilBERT and RoBERTa."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.conversion.comparison.explanation import Arrays
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.opening import text_classification_of
from export.conversion.model_folder.task import Preprocessing
from export.conversion.model_source import Labelled, text_source_of_run
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.conversion.text_source import TextClassifierSource
from export.data.own.texts import TextRequest, load_texts, rebuild_texts
from export.data.sets.description import DataSet, data_set
from export.data.sets.texts import also_measured_on, load_text_set, read_texts
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.markdown import table
from export.networks.transformer import TextClassifier
from export.onnx_graphs.explanation_modules import ExplainedTextClassifier
from export.onnx_graphs.import_weights import StoredNetwork
from export.task_table import TEXT_CLASSIFICATION
from export.tasks.classification import ClassificationTask
from export.tasks.own.texts import conversion_of_own_run
from export.tasks.run_tables import HOW, accuracy, best_first, how
from export.tasks.task import OwnOptions, Records, ReportSection, Target
from export.training.fine_tuning.run import fine_tune
from export.training.fine_tuning.run import measure as measure_encoder
from export.training.fine_tuning.saved_model import HUGGING_FACE
from export.training.fine_tuning.settings import EncoderShape, FineTuneConfig, recipe_for
from export.training.run_folder import read_result
from export.training.text_classifier import NETWORKS, measure, train_text_classifier
from export.training.text_recipes import TextTrainConfig
from export.training.trainer import this_device
from model_store.folder import GoldenExample, Manifest
from service.tasks.text.tokenization import TEXT_PAIR, Pair, Text

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


def golden_text(example: GoldenExample) -> Text:
    """Return the text or pair of a golden example."""
    text, pair = example.inputs["text"], example.inputs.get(TEXT_PAIR)
    return text if pair is None else Pair(text, pair)


class TextClassification(ClassificationTask[TextTrainConfig | FineTuneConfig]):
    """Text classifiers."""

    name = TEXT_CLASSIFICATION
    networks = {name: (TextTrainConfig, shape) for shape, (name, _) in NETWORKS.items()} | {
        "encoder": (FineTuneConfig, EncoderShape)
    }
    validation_sets = ("sst2",)
    own_options = ("text_column", "text_pair_column", "label_column", "problem")
    explained_network = TextClassifier
    report = ReportSection(
        place=1, subject="sentiment", curve_measure="accuracy", write=report_section, has_confusion=True
    )

    def load_data(self, key: str) -> TextClassificationData:
        """Load a described data set."""
        return load_text_set(key)

    def load_own(self, options: OwnOptions) -> TextClassificationData:
        """Read labelled texts, or pairs of texts, of one's own."""
        return load_texts(TextRequest(**options.request(*self.own_options)))

    def recipe_for(self, data: TextClassificationData, start_from: str) -> tuple[str, str]:
        """Choose by the number of training rows and by the start."""
        return recipe_for(len(data.train), start_from)

    def train(
        self,
        data: TextClassificationData,
        config: TextTrainConfig | FineTuneConfig,
        run_dir: Path,
        console: Console,
        time_budget_s: float,
        command: str,
    ) -> bool:
        """Train a network of this repository, or an encoder of `transformers`."""
        if isinstance(config, FineTuneConfig):
            return fine_tune(data, config, run_dir, console, time_budget_s, command)
        return train_text_classifier(data, config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the split that is reported: of own data, the test split."""
        if document := result.get("data_document"):
            data = rebuild_texts(document)
            measure_saved = measure_encoder if (run_dir / HUGGING_FACE).is_dir() else measure
            return measure_saved(run_dir, data, this_device())
        return measure(run_dir, read_texts(self.known_data(run_dir, result)), this_device())

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run; one on data of one's own is compared and measured on its own held-out rows."""
        result = read_result(run_dir)
        if not result.get("data_document"):
            super().convert(run_dir, target, console)
            return
        source, options = conversion_of_own_run(run_dir, result)
        self.write_model(source, target, console, **options)

    def scores_of_folder(
        self, folder: Path, manifest: Manifest
    ) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Return the function of the folder's settings."""
        task = text_classification_of(folder, manifest)
        numbers = range(len(manifest.labels))
        return lambda logits_BC: np.array(
            [[task.probability(logits_C, number) for number in numbers] for logits_C in logits_BC], dtype=np.float32
        )

    def source_of_run(self, run_dir: Path) -> TextClassifierSource:
        """Load a finished run."""
        return text_source_of_run(run_dir)

    def measured_inputs(self, described: DataSet) -> dict[str, Any]:
        """Load the validation split, and the further texts that the description names."""
        data = read_texts(described)
        return {
            "compare_on": data.validation.texts,
            "labelled": data.validation,
            "also_measured_on": also_measured_on(described, data.label_names),
        }

    def made_up_inputs(self, count: int) -> list[str]:
        """Generate sentences."""
        return made_up_sentences(count)

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a Hugging Face text classifier, and measure it on the data set that `validate_on` names.

        Raises:
            ValueError: the model's classes are not those of the data set.
        """
        from export.conversion.text_checkpoint import classifier_of_hugging_face  # imports transformers: seconds

        loaded = classifier_of_hugging_face(source)
        labelled: LabelledTexts | None = None
        about = {}
        if validate_on:
            data = read_texts(data_set(validate_on, self.name))
            if [label.upper() for label in loaded.labels] != data.label_names:
                classes = ", ".join(loaded.labels)
                raise ValueError(
                    f"--validate-on {validate_on} has {', '.join(data.label_names)}; this model has {classes}"
                )
            labelled, about = data.validation, {"measured_on": data.name}
        compare_on = labelled.texts if labelled else made_up_sentences(MIN_COMPARED)
        self.write_model(loaded, target, console, compare_on=compare_on, labelled=labelled, about=about)

    def material(self, known: Collection[Any]) -> Mapping[str, Labelled] | None:
        """Load the validation split."""
        described = self.known_among(known)
        return {"validation": read_texts(described).validation} if described else None

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
            golden_input=golden_text,
            item=lambda given: texts.preprocess(given, truncate=True, field="text"),
            collate=texts.collate,
        )

    def invented_inputs(self, folder: Path) -> Sequence[str]:
        """Generate texts of unrelated words."""
        return invented_texts(folder, NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS)


TASK = TextClassification()
