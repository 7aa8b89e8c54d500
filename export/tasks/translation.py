"""Translation: Multi30k and Tatoeba, encoder-decoder networks, and models of Hugging Face."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.translation_source import translation_source_of_run
from export.data.own.translation import TranslationRequest, load_pairs, rebuild_pairs
from export.data.sets.description import data_set_named
from export.data.sets.translations import load_translation_set, read_translations
from export.data.translation import ParallelTexts, TranslationData
from export.markdown import table
from export.task_table import TRANSLATION
from export.tasks.own.training import about_files
from export.tasks.run_tables import HOW, how
from export.tasks.task import OwnOptions, Records, ReportSection, Target, TrainedTask
from export.tasks.text_to_text.loaded import TextToText, made_up
from export.training import translation as training
from export.training.quality import with_confidence
from export.training.run_folder import read_result
from export.training.trainer import this_device

MANY_PAIRS = 50_000  # with fewer training pairs, a smaller network is trained for more epochs


def report_section(records: Records) -> str:
    """Write the section on the English to German translation models, by test split."""
    runs = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["data"],
            f"{record['num_training_examples']:,}",
            f"{record['num_parameters'] / 1e6:.2f} M",
            *how(record),
        ]
        for name, record in records.items()
    ]
    signatures, measurements = dict[str, str](), list[list[str]]()
    for name, record in records.items():
        for split, searches in record["quality"].items():
            for search, measured in searches.items():
                figures = [with_confidence(measured, kind) for kind in ("bleu", "chrf", "bleu_lower_tokenised")]
                measurements.append([name, f"{split} (n = {measured['num_examples']:,})", search, *figures])
                signatures |= {key: value for key, value in measured.items() if key.endswith("_signature")}
    lines = [
        "",
        "## Translation (English to German)",
        "",
        "The epoch of each run was chosen by the token accuracy on the validation split: the fraction of tokens that"
        " are predicted correctly when all earlier tokens of the reference are given. The weights were rounded to half"
        " precision before the measurement, as they are served.",
        "",
        "The columns BLEU and chrF are computed on the served text, cased and detokenised. The last column is BLEU of"
        " lower-case text tokenised by Moses, as papers on Multi30k report it (Wu et al. 2021: 41.02 with beams of 5)."
        " The two BLEU columns must not be compared with each other. ± is half the width of the 95 % confidence"
        " interval (bootstrap).",
        *table(("run", "network", "trained on", "pairs", "parameters", *HOW), runs),
        *table(("run", "test split", "search", "BLEU", "chrF", "BLEU, lower case, tokenised"), measurements),
        "",
        *(f"- {key.replace('_', ' ')}: `{value}`" for key, value in signatures.items()),
        "",
        "![token accuracy on the validation split by minutes of training](models-translation-curves.png)",
    ]
    return "\n".join(lines) + "\n"


class Translation(TextToText, TrainedTask[ParallelTexts, training.TranslationTrainConfig]):
    """Translation models."""

    name = TRANSLATION
    networks = {  # noqa: RUF012, a field of the protocol
        name: (training.TranslationTrainConfig, shape) for shape, (name, _) in training.NETWORKS.items()
    }
    own_options = (
        *("data_target", "validation_target", "test_target"),
        *("source_language", "target_language", "source_column", "target_column"),
    )
    score_name, answers_name = "translation score", "translations"
    report = ReportSection(
        place=2, subject=TRANSLATION, curve_measure="token accuracy", write=report_section, has_confusion=False
    )

    def load_own(self, options: OwnOptions) -> TranslationData:
        """Read parallel texts of one's own: a table, or two files whose lines belong together."""
        given = options.request(*self.own_options)
        if "data_target" in given:
            given["train_target"] = given.pop("data_target")
        return load_pairs(TranslationRequest(**given))

    def recipe_for(self, data: TranslationData, start_from: str) -> tuple[str, str]:
        """Choose by the number of training pairs.

        Raises:
            ValueError: a start is given; translation networks start from random weights.
        """
        if start_from not in ("", "scratch"):
            raise ValueError(f"--start-from {start_from}: translation networks start from scratch")
        few = len(data.train) < MANY_PAIRS
        why = f"{len(data.train):,} training pairs are {'fewer than' if few else 'at least'} {MANY_PAIRS:,}"
        return "pairs-few-rows" if few else "pairs", why

    def load_data(self, key: str) -> TranslationData:
        """Load a described data set."""
        return load_translation_set(key)

    def train(
        self,
        data: TranslationData,
        config: training.TranslationTrainConfig,
        run_dir: Path,
        console: Console,
        time_budget_s: float,
        command: str,
    ) -> bool:
        """Train a network of this repository."""
        return training.train_translation(data, config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the test splits."""
        if document := result.get("data_document"):
            return training.measure(run_dir, rebuild_pairs(document), this_device(), console)
        return training.measure(run_dir, load_translation_set(result["config"]["data"]), this_device(), console)

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run, compared and measured on its own test splits where they are known."""
        result = read_result(run_dir)
        source = translation_source_of_run(run_dir)
        if document := result.get("data_document"):
            own = rebuild_pairs(document)
            held_out = own.reported
            more = made_up(source) if sum(map(len, held_out.values())) < MIN_COMPARED else {}
            self.write_model(source, target, console, held_out | more, about_files(document))
        elif described := data_set_named(result["data"], self.name):
            data = read_translations(described)
            self.write_model(source, target, console, data.test, {"licence": data.licence})
        else:
            console.print(
                f"the run was trained on {result['data']!r}, an unknown data set: its quality is not measured"
            )
            self.write_model(source, target, console, made_up(source), {})


TASK = Translation()
