"""Translation: Multi30k and Tatoeba, encoder-decoder networks, and Hugging Face's Marian models."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from export.conversion.comparison.explanation import Arrays, ExplainGraph, Row, translation_difference
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.float16 import measure_translations
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.opening import generation_of, translation_of
from export.conversion.model_folder.task import ExplainedTask
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.conversion.translation import convert_translation
from export.conversion.translation_source import TranslationSource, translation_source_of_run
from export.data.own.translation import TranslationRequest, load_pairs, rebuild_pairs
from export.data.sets.description import data_set_named, data_sets
from export.data.sets.translations import load_translation_set, read_translations
from export.data.translation import ParallelTexts, TranslationData
from export.markdown import table
from export.networks.translation import TranslationTransformer
from export.onnx_graphs.explanation_modules import Explained, ExplainedTranslation
from export.onnx_graphs.import_weights import StoredNetwork
from export.onnx_graphs.translation import OnnxTranslator
from export.task_table import TRANSLATION
from export.tasks.own.training import about_files
from export.tasks.run_tables import HOW, how
from export.tasks.task import OwnOptions, Records, ReportSection, Target, TrainedTask
from export.training import translation as training
from export.training.quality import with_confidence
from export.training.run_folder import read_result
from export.training.trainer import this_device
from model_store.folder import ENCODER_FLOAT16, GRAPH_FLOAT16, GoldenExample, HalfPrecision, Manifest
from service.tasks.decoding.search import GOLDEN_SEARCHES, Sentence

# A translation takes one decoder step per token, so search fewer items and fewer times.
EFFORT = SearchEffort(
    max_items=64,
    batch_sizes=(2, 8, 32),
    num_extremes=4,
    num_targets=8,
    company_sizes=(1, 1, 2, 3, 5),
    num_climbs=2,
    num_changes=24,
)
MANY_PAIRS = 50_000  # with fewer training pairs, a smaller network is trained for more epochs
NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS = 2, 24  # texts of each kind, and words of a long one


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


class Translation(ExplainedTask[ParallelTexts], TrainedTask[ParallelTexts, training.TranslationTrainConfig]):
    """Translation models."""

    name = TRANSLATION
    networks = {  # noqa: RUF012, a field of the protocol
        name: (training.TranslationTrainConfig, shape) for shape, (name, _) in training.NETWORKS.items()
    }
    own_options = (
        *("data_target", "validation_target", "test_target"),
        *("source_language", "target_language", "source_column", "target_column"),
    )
    explained_network = TranslationTransformer
    float16_graphs = (GRAPH_FLOAT16, ENCODER_FLOAT16)
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
            more = _made_up() if sum(map(len, held_out.values())) < MIN_COMPARED else {}
            self._write_model(source, target, console, held_out | more, about_files(document))
        elif described := data_set_named(result["data"], self.name):
            data = read_translations(described)
            self._write_model(source, target, console, data.test, {"licence": data.licence})
        else:
            console.print(
                f"the run was trained on {result['data']!r}, an unknown data set: its quality is not measured"
            )
            self._write_model(source, target, console, _made_up(), {})

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a Hugging Face translation model."""
        from export.conversion.marian import source_of_marian  # imports transformers, which takes seconds

        self._write_model(source_of_marian(source), target, console, _made_up(), {})

    def _write_model(
        self,
        source: TranslationSource,
        target: Target,
        console: Console,
        compare_on: Mapping[str, ParallelTexts],
        about: dict[str, Any],
    ) -> None:
        convert_translation(
            source,
            self,
            name=target.name,
            store=target.store,
            compare_on=compare_on,
            precision=target.precision,
            about=about,
            console=console,
        )

    def material(self, known: Collection[Any]) -> Mapping[str, ParallelTexts] | None:
        """Load the test splits of the data set."""
        described = next((each for each in data_sets(self.name) if each.name in known), None)
        return read_translations(described).test if described else None

    def explained(self, stored: StoredNetwork, folder: Path) -> ExplainedTranslation:
        """Explain a translation by source tokens."""
        assert isinstance(stored.module, TranslationTransformer)
        return ExplainedTranslation(stored.module, generation_of(folder)["decoder_start_token_id"], stored.output_VD)

    def golden_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Explain the greedy translation."""
        source, written = example.tensors["input_ids"], example.tensors["greedy"]
        assert not isinstance(source, str) and not isinstance(written, str)
        target_ids = np.array([*written, generation_of(folder)["eos_token_id"]])[: manifest.limits.max_tokens]
        return {
            "source_ids": np.array(source),
            "source_mask": np.ones(len(source), dtype=np.int64),
            "target_ids": target_ids,
            "target_mask": np.ones_like(target_ids),
        }

    def served_difference(self, folder: Path, network: Explained, graph: ExplainGraph, rows: Sequence[Row]) -> float:
        """Return the largest difference of a token's log probability."""
        assert isinstance(network, ExplainedTranslation)
        return translation_difference(folder, network, graph, rows)

    def measure_float16(
        self,
        folder: Path,
        manifest: Manifest,
        golden: Sequence[GoldenExample],
        measured_on: Mapping[str, ParallelTexts],
    ) -> HalfPrecision:
        """Measure BLEU with the float16 graphs."""
        return measure_translations(folder, manifest, golden, measured_on)

    def float16_lines(self, split: str, measured: Mapping[str, Any], precision: str) -> list[str]:
        """Write the BLEU of the float16 graphs and of the served ones, by search."""
        return [
            f"- {split}, n = {found['num_examples']}, {search}: BLEU {found['bleu']:.2f} instead of"
            f" {found[f'bleu_in_{precision}']:.2f}, {found['translations_changed']} translations change;"
            f" scores of the others differ by at most {found['max_abs_score_difference']:.2g}"
            for search, found in measured.items()
        ]

    def search_company(
        self, folder: Path, manifest: Manifest, inputs: Sequence[Any]
    ) -> tuple[SearchEffort, list[Found]]:
        """Measure changes of translation scores, for each search."""
        task, translator, generation = translation_of(folder, manifest), OnnxTranslator(folder), generation_of(folder)
        begin_and_end = {"bos_id": generation["decoder_start_token_id"], "eos_id": generation["eos_token_id"]}

        def answer(sentences: Sequence[Sentence]) -> list[Answer]:
            ids, options = [each.ids for each in sentences], [each.options for each in sentences]
            translated = training.translate(translator, ids, options, len(ids), **begin_and_end)
            return [Answer(tuple(each.ids), (each.score,)) for each in translated]

        found, invented = [], invented_texts(folder, NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS)
        for request in GOLDEN_SEARCHES.values():
            sentence = partial(task.preprocess, truncate=True, field="text", request=request)
            items, unusual = ([sentence(text) for text in texts] for texts in (inputs, invented))
            found.append(search_company(answer, items, unusual, attrgetter("length"), EFFORT))
        return EFFORT, found


def _made_up() -> dict[str, ParallelTexts]:
    """Return sentences without references, to compare with PyTorch when no data set is available."""
    return {"made-up sentences": ParallelTexts(made_up_sentences(MIN_COMPARED), [])}


TASK = Translation()
