"""Token classification: encoders of texts that label each token, on texts of one's own or from Hugging Face."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from export.conversion.classifier import convert
from export.conversion.comparison.requirements import MIN_COMPARED, Precision
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.model_source import provenance_of
from export.data.own.entities import EntityRequest, load_entities, rebuild_entities
from export.data.token_classification import TokenClassificationData
from export.markdown import table
from export.task_table import TOKEN_CLASSIFICATION
from export.tasks.own.entities import OwnEntities, own_entities
from export.tasks.own.quality import about_data, is_own, loss_of_own, own_quality_lines
from export.tasks.run_tables import HOW, how
from export.tasks.task import OwnOptions, Records, ReportSection, Target, TrainedTask
from export.tasks.text.agreement import AgreementTask, Inputs, Numbers
from export.tasks.text.rows_source import (
    RawInput,
    RowsSource,
    TokenLogits,
    rows_source_of_hugging_face,
    served_arguments,
)
from export.training.fine_tuning.entities.run import fine_tune_entities, measure_entities
from export.training.fine_tuning.entities.settings import EntityTrainConfig, recipe_for
from export.training.fine_tuning.saved_model import HUGGING_FACE
from export.training.fine_tuning.settings import EncoderShape
from export.training.run_folder import read_result
from export.training.trainer import this_device
from model_store.folder import Manifest
from service.tasks.text.token_classification import EntityText
from service.tasks.text.token_classification import TokenClassification as Served


def token_classifier_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a model that labels tokens.

    Raises:
        LoadRefused: not a complete model of this task.
    """
    from transformers import AutoModelForTokenClassification

    from export.conversion.checkpoints.reading import labels_of
    from export.conversion.text_checkpoint import read_text_checkpoint

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForTokenClassification)
    labels = labels_of(checkpoint.document, checkpoint.model.config.num_labels)
    served = Served(**served_arguments(checkpoint), labels=labels)
    # A long text is cut into windows.
    texts = [*GOLDEN_TEXTS, " ".join(made_up_sentences(served.max_length // 8 + 2))]
    return rows_source_of_hugging_face(
        checkpoint,
        partial(TokenLogits, outputs=["logits"]),
        served,
        labels=labels,
        width=len(labels),
        golden=[RawInput({"text": text}, EntityText(text)) for text in texts],
    )


def report_section(records: Records) -> str:
    """Write the section on models that find entities."""
    rows = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["data"],
            f"{record['num_training_examples']:,}",
            f"{record['num_parameters'] / 1e6:.2f} M",
            f"{record['quality']['f1_micro']:.4f}",
            *how(record),
        ]
        for name, record in records.items()
    ]
    columns = ("run", "network", "data", "training texts", "parameters", "F1 of entities", *HOW)
    return "\n".join(["", "## Entities", *table(columns, rows)]) + "\n"


class TokenClassification(AgreementTask, TrainedTask[Inputs, EntityTrainConfig]):
    """Encoders that label tokens."""

    name = TOKEN_CLASSIFICATION
    answers_name = "labels of tokens"
    networks = {"encoder": (EntityTrainConfig, EncoderShape)}  # noqa: RUF012, a field of the protocol
    own_options = (
        *("text_column", "entities_column", "tokens_column", "tags_column"),
        *("token_column", "tag_column"),
    )
    report = ReportSection(
        place=4, subject="entities", curve_measure="F1 of entities", write=report_section, has_confusion=False
    )

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Ask for the entities of texts."""
        return [EntityText(text) for text in texts]

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a model that labels tokens."""
        self.write(token_classifier_of_hugging_face(source), target, console)

    def load_data(self, key: str) -> TokenClassificationData:
        """Raises ValueError: no data set of this task is described."""
        raise ValueError(f"there is no data set {key!r} for {self.name}: give your own with --data")

    def load_own(self, options: OwnOptions) -> TokenClassificationData:
        """Read texts with entities of one's own."""
        return load_entities(EntityRequest(**options.request(*self.own_options)))

    def recipe_for(self, data: TokenClassificationData, start_from: str) -> tuple[str, str]:
        """Choose by the number of training texts and by the start."""
        return recipe_for(len(data.train), start_from)

    def train(
        self,
        data: TokenClassificationData,
        config: EntityTrainConfig,
        run_dir: Path,
        console: Console,
        time_budget_s: float,
        command: str,
    ) -> bool:
        """Train an encoder of `transformers`."""
        return fine_tune_entities(data, config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the split that is reported."""
        return measure_entities(run_dir, rebuild_entities(result["data_document"]), this_device())

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run, compared and measured on its own held-out texts."""
        result = read_result(run_dir)
        source = token_classifier_of_hugging_face(str(run_dir / HUGGING_FACE))
        kept = {name: source.provenance[name] for name in ("model_type", "transformers")}
        assert isinstance(source.served, Served)
        measured = own_entities(run_dir, result, source.served)
        convert(
            replace(source, provenance=provenance_of(result) | kept),
            self,
            name=target.name,
            store=target.store,
            precision=target.precision,
            console=console,
            compare_on=[*measured.inputs, *self.compared(max(0, MIN_COMPARED - len(measured.inputs)))],
            labelled=measured,
            split=str(result["measured_on"]),
            about=about_data(result),
        )

    def quality(
        self, results: Sequence[Numbers], split: Inputs, expected: Callable[[], Sequence[Numbers]]
    ) -> dict[str, Any]:
        """Measure the entities of texts of one's own, and how many answers are those of PyTorch."""
        agreement = self.agreement(results, expected())
        return agreement | split.quality(results) if isinstance(split, OwnEntities) else agreement

    def check_loss(
        self, measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision
    ) -> dict[str, Any]:
        """Refuse a precision that finds too many other entities, or changes too many answers."""
        if is_own(measured):
            return loss_of_own(measured, before, precision)
        return super().check_loss(measured, before, precision)

    def quality_lines(self, manifest: Manifest) -> list[str]:
        """Write the figures of entities, with intervals and each label; else the agreement with PyTorch."""
        if any(map(is_own, manifest.quality.values())):
            return own_quality_lines(manifest)
        return super().quality_lines(manifest)


TASK = TokenClassification()
