"""Translation: Multi30k and Tatoeba, encoder-decoder networks, and models of Hugging Face."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from export.conversion.translation_source import translation_source_of_run
from export.data.translation import ParallelTexts
from export.markdown import table
from export.task_table import TRANSLATION
from export.tasks.run_tables import HOW, how
from export.tasks.task import Records, ReportSection, Target, TrainedTask
from export.tasks.text_to_text.loaded import TextToText, made_up
from export.training import translation as training
from export.training.quality import with_confidence
from export.training.run_folder import read_result
from export.training.trainer import this_device


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
    recipes = training.RECIPES
    score_name, answers_name = "translation score", "translations"
    report = ReportSection(
        place=2, subject=TRANSLATION, curve_measure="token accuracy", write=report_section, has_confusion=False
    )

    def train(
        self,
        config: training.TranslationTrainConfig,
        run_dir: Path,
        console: Console,
        time_budget_s: float,
        command: str,
    ) -> bool:
        """Train on the recipe's data set."""
        data = training.LOADERS[config.data]()
        return training.train_translation(data, config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the test splits."""
        return training.measure(run_dir, training.LOADERS[result["config"]["data"]](), this_device(), console)

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run, compared and measured on its own test splits where they are known."""
        result = read_result(run_dir)
        source = translation_source_of_run(run_dir)
        load_data = training.LOADERS.get(result["config"]["data"])
        data = load_data() if load_data else None
        if data is not None and data.name == result["data"]:
            self.write_model(source, target, console, data.test, {"licence": data.licence})
        else:
            console.print(
                f"the run was trained on {result['data']!r}, an unknown data set: its quality is not measured"
            )
            self.write_model(source, target, console, made_up(source), {})


TASK = Translation()
