"""Measures how far int8 answers change with the other items of their engine call, for manifest and card.

    folder, inputs ──> items alone, in random batches, in chosen batches ──> `batch_sensitivity` of the manifest, card

The figures are the largest changes that a search has found, not a bound: clients may send worse batches.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from tokenizers import Tokenizer

from export.conversion.explanation_graph import CARD_HEADING as EXPLAINED_HEADING
from export.conversion.float16 import CARD_HEADING as HALF_PRECISION_HEADING
from export.conversion.model_folder.opening import open_folder
from export.conversion.model_folder.task import FolderTask, S, Split
from export.stopping import stopping_later
from model_store.folder import CARD, MANIFEST, TOKENIZER, BatchSensitivity, Manifest, write_manifest

CARD_HEADING = "\n## Batch sensitivity\n\n"
RANDOM_WORDS = 16  # in an invented text


def measure_batch_sensitivity(
    folder: Path, manifest: Manifest, task: FolderTask[S], inputs: Sequence[Any]
) -> BatchSensitivity:
    """Measure a folder that has its served graphs, tokenizer and configuration.

    Args:
        folder: the model folder.
        manifest: the manifest as it will be written.
        task: the model's task.
        inputs: texts or image files, such as clients send.
    """
    effort, found = task.search_company(folder, manifest, inputs)
    changes = [change for each in found for change in each.changes]
    return BatchSensitivity(
        score=task.score_name,
        worst=max(each.worst for each in found),
        worst_in_random_company=max(each.worst_random for each in found),
        mean=sum(changes) / len(changes),
        num_items=min(effort.max_items, len(inputs)),
        num_answers=len(changes),
        answers_changed=sum(each.changed_answers for each in found),
        batch_sizes=list(effort.batch_sizes),
        seed=effort.seed,
    )


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


def with_batch_sensitivity(
    folder: Path, manifest: Manifest, task: FolderTask[S], inputs: Sequence[Any], console: Console
) -> Manifest:
    """Measure an int8 folder and return its manifest with the figures; return other manifests unchanged."""
    if manifest.precision != "int8":
        return manifest
    console.print("measuring how much answers change with the other items of a batch")
    found = measure_batch_sensitivity(folder, manifest, task, inputs)
    console.print(f"batch sensitivity: {found!r}", highlight=False)
    return msgspec.structs.replace(manifest, batch_sensitivity=found)


def inputs_of(material: Mapping[str, Split]) -> list[Any]:
    """Join the inputs of all splits, in order."""
    return [given for split in material.values() for given in split.inputs]


def add_to_store(
    folder: Path,
    task_of: Callable[[str], FolderTask[S]],
    measured_on: Callable[[Manifest], Mapping[str, S]],
    console: Console,
) -> Manifest:
    """Measure a version in the store; its graphs and weights stay as they are.

    Args:
        folder: the version's folder.
        task_of: returns the task of this name.
        measured_on: finds labelled inputs, or sentences with references, for a model.
        console: shows progress.

    Raises:
        FolderError: the folder is damaged.
        ValueError: the folder is a bare graph or not in int8, or no data to measure it on is known.
    """
    manifest = open_folder(folder).manifest
    if manifest is None:
        raise ValueError(f"{folder} is a bare ONNX graph: its inputs are unknown")
    if manifest.precision != "int8":
        raise ValueError(
            f"{folder} is in {manifest.precision}: its answers do not depend on the other items of a batch"
        )
    task = task_of(manifest.task)
    manifest = with_batch_sensitivity(folder, manifest, task, inputs_of(measured_on(manifest)), console)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".measuring-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "folder"))
        section = card_of_batch_sensitivity(manifest, task)
        (copy / CARD).write_text(_card_with_section((copy / CARD).read_text(), section))
        write_manifest(copy, manifest)
        with stopping_later(""):  # the manifest has the checksums of the others
            for name in (CARD, MANIFEST):
                (copy / name).replace(folder / name)
    return manifest


def _card_with_section(card: str, section: str) -> str:
    """Insert or replace this section in a card, before the sections on graphs that were added later."""
    places = [card.find(heading) for heading in (HALF_PRECISION_HEADING, EXPLAINED_HEADING)]
    end = min((place for place in places if place >= 0), default=len(card))
    return card[:end].split(CARD_HEADING, maxsplit=1)[0] + section + card[end:]


def card_of_batch_sensitivity(manifest: Manifest, task: FolderTask[S]) -> str:
    """Write the card's section on batch sensitivity; empty for a folder without figures."""
    found = manifest.batch_sensitivity
    if found is None:
        return ""
    sizes = ", ".join(map(str, found.batch_sizes))
    return CARD_HEADING + "\n".join(
        [
            f"Answers are {found}. In int8 all rows of an engine call share one scale, so an answer depends on the"
            f" other items of its call. The {found.score} is compared with that of the item alone:",
            "",
            f"- {found.num_items} items in random calls of {sizes}: mean change {found.mean:.4f}, worst"
            f" {found.worst_in_random_company:.3f}; {found.answers_changed} of {found.num_answers}"
            f" {task.answers_name} change",
            f"- in calls chosen for the largest change: worst change {found.worst:.3f}",
            "",
            "These are the largest changes that a search has found, not a bound.",
            "",
        ]
    )
