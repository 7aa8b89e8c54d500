"""Measures how far int8 answers change with the other items of their engine call, for manifest and card.

    folder, inputs ──> items alone, in random company, in chosen company ──> `batch_sensitivity` of the manifest, card

The figures are the largest changes that a search has found, not a bound: clients may send worse company.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from export.conversion.explanation_graph import CARD_HEADING as EXPLAINED_HEADING
from export.conversion.explanation_graph import open_folder
from export.conversion.float16 import CARD_HEADING as HALF_PRECISION_HEADING
from export.conversion.float16 import Material, classifier_of, translation_of
from export.conversion.golden_images import golden_images, made_up_images
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.data.translation import ParallelTexts
from export.onnx_graphs.passes import cpu_session
from export.onnx_graphs.translation import OnnxTranslator
from export.training.quality import softmax
from export.training.translation import translate
from model_store.folder import CARD, GRAPH, MANIFEST, TOKENIZER, BatchSensitivity, Manifest, write_manifest
from service.tasks.translation_search import GOLDEN_SEARCHES, Sentence

CARD_HEADING = "\n## In company\n\n"
# A translation takes one decoder step per token, so search fewer items and fewer times.
TRANSLATION_EFFORT = SearchEffort(
    max_items=64,
    batch_sizes=(2, 8, 32),
    num_extremes=4,
    num_targets=8,
    company_sizes=(1, 1, 2, 3, 5),
    num_climbs=2,
    num_changes=24,
)
NUM_IMAGES = 6  # of noise
RANDOM_WORDS = 16  # in an invented text
# Invented texts of each kind, and words of a long one.
CLASSIFIED_TEXTS, TRANSLATED_TEXTS = (6, 96), (2, 24)


def measure_batch_sensitivity(folder: Path, manifest: Manifest, inputs: Sequence[Any]) -> BatchSensitivity:
    """Measure a folder that has its served graphs, tokenizer and configuration.

    Args:
        folder: the model folder.
        manifest: the manifest as it will be written.
        inputs: texts or image files, such as clients send.
    """
    translates = manifest.task == "translation"
    effort = TRANSLATION_EFFORT if translates else SearchEffort()
    found = (_translations if translates else _classifications)(folder, manifest, inputs, effort)
    changes = [change for each in found for change in each.changes]
    return BatchSensitivity(
        score="translation score" if translates else "probability",
        worst=max(each.worst for each in found),
        worst_in_random_company=max(each.worst_random for each in found),
        mean=sum(changes) / len(changes),
        num_items=min(effort.max_items, len(inputs)),
        num_answers=len(changes),
        answers_changed=sum(each.changed_answers for each in found),
        batch_sizes=list(effort.batch_sizes),
        seed=effort.seed,
    )


def _classifications(folder: Path, manifest: Manifest, inputs: Sequence[Any], effort: SearchEffort) -> list[Found]:
    _, collate, item = classifier_of(folder, manifest)
    session = cpu_session(folder / GRAPH)

    def answer(items: Sequence[Any]) -> list[Answer]:
        probabilities_BC = softmax(session.run(["logits"], collate(items))[0])
        return [Answer((int(np.argmax(row_C)),), tuple(row_C.tolist())) for row_C in probabilities_BC]

    images = manifest.task == "image-classification"
    invented = (
        [*made_up_images(NUM_IMAGES), *golden_images().values()]
        if images
        else invented_texts(folder, *CLASSIFIED_TEXTS)
    )
    items = [item(given) for given in inputs]
    return [search_company(answer, items, [item(given) for given in invented], attrgetter("length"), effort)]


def _translations(folder: Path, manifest: Manifest, inputs: Sequence[str], effort: SearchEffort) -> list[Found]:
    task, translator = translation_of(folder, manifest), OnnxTranslator(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    begin_and_end = {"bos_id": generation["decoder_start_token_id"], "eos_id": generation["eos_token_id"]}

    def answer(sentences: Sequence[Sentence]) -> list[Answer]:
        ids, options = [each.ids for each in sentences], [each.options for each in sentences]
        translated = translate(translator, ids, options, len(ids), **begin_and_end)
        return [Answer(tuple(each.ids), (each.score,)) for each in translated]

    found = []
    for request in GOLDEN_SEARCHES.values():
        sentence = partial(task.preprocess, truncate=True, field="text", request=request)
        items, invented = (
            [sentence(text) for text in texts] for texts in (inputs, invented_texts(folder, *TRANSLATED_TEXTS))
        )
        found.append(search_company(answer, items, invented, attrgetter("length"), effort))
    return found


def invented_texts(folder: Path, count: int, long_words: int, seed: int = 20) -> list[str]:
    """Generate texts of unrelated words: one word, a sentence, a long text, and one repeated word.

    Args:
        folder: the model folder, from whose vocabulary the words are drawn.
        count: the number of texts of each kind.
        long_words: the number of words of a long text.
        seed: the seed of the random words.
    """
    vocabulary = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha() and word.isascii()) or ["a"]
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(words, k=size)) for size in (1, RANDOM_WORDS, long_words) for _ in range(count)]
    return texts + [" ".join([rng.choice(words)] * long_words) for _ in range(count)]


def with_batch_sensitivity(folder: Path, manifest: Manifest, inputs: Sequence[Any], console: Console) -> Manifest:
    """Measure an int8 folder and return its manifest with the figures; return other manifests unchanged."""
    if manifest.precision != "int8":
        return manifest
    console.print("measuring how far answers move with their company in a batch")
    found = measure_batch_sensitivity(folder, manifest, inputs)
    console.print(f"in company: {found!r}", highlight=False)
    return msgspec.structs.replace(manifest, batch_sensitivity=found)


def inputs_of(material: Material) -> list[Any]:
    """Join the inputs of all splits, in order."""
    splits: Mapping[str, Any] = material
    return [
        given
        for split in splits.values()
        for given in (split.source if isinstance(split, ParallelTexts) else split.inputs)
    ]


def add_to_store(folder: Path, measured_on: Callable[[Manifest], Material], console: Console) -> Manifest:
    """Measure a version in the store; its graphs and weights stay as they are.

    Args:
        folder: the version's folder.
        measured_on: finds labelled inputs, or sentences with references, for a model.
        console: shows progress.

    Raises:
        FolderError: the folder is damaged.
        ValueError: the folder is a bare graph or not in int8, or no data to measure it on is known.
    """
    manifest = open_folder(folder).manifest
    if manifest is None:
        raise ValueError(f"{folder} is a bare ONNX graph: nothing says what it takes")
    if manifest.precision != "int8":
        raise ValueError(f"{folder} is in {manifest.precision}: its answers do not depend on their company")
    manifest = with_batch_sensitivity(folder, manifest, inputs_of(measured_on(manifest)), console)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".measuring-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "folder"))
        (copy / CARD).write_text(_card_with_section((copy / CARD).read_text(), card_of_batch_sensitivity(manifest)))
        write_manifest(copy, manifest)
        for name in (CARD, MANIFEST):
            (copy / name).replace(folder / name)
    return manifest


def _card_with_section(card: str, section: str) -> str:
    """Insert or replace this section in a card, before the sections on graphs that were added later."""
    places = [card.find(heading) for heading in (HALF_PRECISION_HEADING, EXPLAINED_HEADING)]
    end = min((place for place in places if place >= 0), default=len(card))
    return card[:end].split(CARD_HEADING, maxsplit=1)[0] + section + card[end:]


def card_of_batch_sensitivity(manifest: Manifest) -> str:
    """Write the card's section on batch sensitivity; empty for a folder without figures."""
    found = manifest.batch_sensitivity
    if found is None:
        return ""
    sizes = ", ".join(map(str, found.batch_sizes))
    changed = "translations" if manifest.task == "translation" else "labels"
    return CARD_HEADING + "\n".join(
        [
            f"Answers are {found}. In int8 all rows of an engine call share one scale, so an answer moves with the"
            f" other items of its call. The {found.score} was compared with that of the item alone:",
            "",
            f"- in random company, {found.num_items} items in calls of {sizes}: mean change {found.mean:.4f}, worst"
            f" {found.worst_in_random_company:.3f}; {found.answers_changed} of {found.num_answers} {changed} change",
            f"- with company chosen to move it most: worst change {found.worst:.3f}",
            "",
            "These are the largest changes that a search has found, not a bound.",
            "",
        ]
    )
