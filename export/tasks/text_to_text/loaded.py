"""The tasks from text to text: loading encoder-decoder models of Hugging Face, conversion, and quality."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from export.conversion.comparison.explanation import Arrays, ExplainGraph, Row, translation_difference
from export.conversion.comparison.translation import min_compared
from export.conversion.float16 import measure_translations
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.opening import generation_of, translation_of
from export.conversion.model_folder.task import ExplainedTask
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.conversion.translation import convert_translation
from export.conversion.translation_source import TranslationSource
from export.data.sets.description import data_sets
from export.data.sets.translations import read_translations
from export.data.translation import ParallelTexts
from export.networks.translation import TranslationTransformer
from export.onnx_graphs.explanation_modules import Explained, ExplainedTranslation
from export.onnx_graphs.import_weights import StoredNetwork
from export.onnx_graphs.translation import OnnxTranslator
from export.tasks.task import ExportTask, Target
from export.training import translation as training
from model_store.folder import ENCODER_FLOAT16, GRAPH_FLOAT16, GoldenExample, HalfPrecision, Manifest
from service.tasks.decoding.search import GOLDEN_SEARCHES
from service.tasks.decoding.sentence import Sentence

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
NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS = 2, 24  # texts of each kind, and words of a long one


class TextToText(ExplainedTask[ParallelTexts], ExportTask[ParallelTexts]):
    """A task whose models are an encoder and a decoder."""

    explained_network = TranslationTransformer
    float16_graphs = (GRAPH_FLOAT16, ENCODER_FLOAT16)
    score_name, answers_name = "score of the text", "texts"

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a model of Hugging Face."""
        from export.conversion.seq2seq.source import source_of_seq2seq  # imports transformers, which takes seconds

        loaded = source_of_seq2seq(source, self.name)
        self.write_model(loaded, target, console, made_up(loaded), {})

    def write_model(
        self,
        source: TranslationSource,
        target: Target,
        console: Console,
        compare_on: Mapping[str, ParallelTexts],
        about: dict[str, Any],
    ) -> None:
        """Convert a source to a version in the store.

        Args:
            source: the model.
            target: the version to write.
            console: shows progress.
            compare_on: sentences to compare on, by the name of their split.
            about: data, licence and the like.
        """
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


def made_up(source: TranslationSource) -> dict[str, ParallelTexts]:
    """Return sentences without references, to compare with PyTorch when no data set is available."""
    return {"made-up sentences": ParallelTexts(made_up_sentences(min_compared(source.module)), [])}
