"""`python -m export explain`: studies what committed models attend to, and how far to trust their explanations.

    data set examples ──> figures of each (build/interpretability/) ──> means ──> docs/interpretability.json
    sentences and pictures of our own ──> examples that are shown ────────┘                │
                                        docs/interpretability.md and its pictures <────────┘

An example's figures are written at once, so that an interrupted run resumes there. No text or image of a data set is
kept, only figures. Random choices depend on a seed and the example's number.

Shapes: M features, K values of an answer, L layers, H heads, T tokens, S source tokens.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from export.data.sets.images import load_image_set
from export.data.sets.texts import load_everyday, load_text_set
from export.data.sets.translations import load_translation_set
from export.provenance import commit_of_this_tree, hardware, this_command
from export.studies.demo_images import demo_images
from export.studies.explained_answers import Answer, ImageModel, TextModel, TranslationModel
from export.studies.explanation_figures import (
    DRAWN,
    METHODS,
    RANDOM,
    SEED,
    Figures,
    agreement_of_seeds,
    figures_of,
    patterns_of_image,
    patterns_of_text,
    patterns_of_translation,
    rank_correlations,
    to_words,
    weights_of,
)
from export.whole_files import write_text
from model_store.folder import MANIFEST, sha256

NUM_EXAMPLES = 200
# Repetitions of sampling methods with another seed: samples (None: the default), and number of examples.
REPEATED: tuple[tuple[int | None, int], ...] = ((None, 50), (1024, 10))
MIN_FEATURES = 5  # ranks of fewer features say little
MANY_SAMPLES = 2048  # for the shown pictures, besides the default
NUM_SHOWN = 16  # shown sentences: the most confident wrong answers, and as many right ones
# Sentences to translate. Some reorder words correctly; others lose or mistake words.
OWN_SENTENCES = (
    "Yesterday the children played in the garden until it got dark.",
    "I don't believe that she will come tomorrow.",
    "The man who lives next door has not yet read the book that I gave him.",
    "A woman in a red coat is waiting for the bus.",
    "The quokka stole my umbrella.",
    "My brother is fed up with the printer.",
    "The bank of the river was muddy.",
)


@dataclass(frozen=True)
class Study:
    """One model's part of the study: its examples, its demonstrations and the figures of its attention."""

    name: str
    data: str  # the data set of its examples
    load: Callable[[Path], Any]
    examples: Callable[[], tuple[Sequence[Any], Sequence[int] | None]]  # inputs and true classes
    own: Callable[[Any], Iterator[Figures]]  # explains the shown examples
    patterns: Callable[[Answer, dict[str, NDArray[np.float32]]], Figures]


def studies() -> list[Study]:
    """Return the studies of the three committed models."""
    return [
        Study("sentiment", "SST-2 validation", TextModel, _sst2, _own_texts, patterns_of_text),
        Study(
            "translation-en-de",
            "Multi30k test2016",
            TranslationModel,
            lambda: (load_translation_set("multi30k").test["Multi30k"].source, None),
            _own_translations,
            patterns_of_translation,
        ),
        Study("cifar10-vit", "CIFAR-10 test", ImageModel, _cifar10, _own_pictures, patterns_of_image),
    ]


def explain(
    store: Path,
    docs: Path,
    work: Path,
    console: Console,
    time_budget_s: float = math.inf,
    num_examples: int = NUM_EXAMPLES,
) -> bool:
    """Measure the missing examples; once all are measured, write the record.

    Args:
        store: the model store.
        docs: the folder for `interpretability.json`.
        work: the folder for the figures of single examples.
        console: shows progress.
        time_budget_s: stop after about this time; a further call resumes.
        num_examples: the number of examples of each model.

    Returns:
        whether all examples are measured.
    """
    end_s = time.monotonic() + time_budget_s
    work.mkdir(parents=True, exist_ok=True)
    record: Figures = {
        "command": this_command(),
        "machine": hardware_of_one_thread(),
        "seed": SEED,
        "methods": list(METHODS),
        "models": {},
    }
    measured = {}
    for study in studies():
        folder = newest(store / study.name)
        examples = measure(study, folder, work / f"{study.name}.jsonl", console, end_s, num_examples)
        if examples is None:
            console.print(f"{study.name}: not finished; run the command again to resume", highlight=False)
            return False
        measured[study.name] = examples
        console.print(f"{study.name}: {len(examples)} examples", highlight=False)
    for study in studies():
        folder, examples = newest(store / study.name), measured[study.name]
        model = study.load(folder)
        record["models"][study.name] = {
            "version": folder.name,
            "precision": model.manifest.precision,
            "data": study.data,
            "commits": sorted({example.pop("commit") for example in examples}),
            "num_examples": len(examples),
            "shown": list(study.own(model)),
            **summary(examples),
        }
    path = docs / "interpretability.json"
    write_text(path, in_lines(json.loads(json.dumps(record, default=_rounded))) + "\n")
    console.print(f"written: {path}")
    return True


def newest(model: Path) -> Path:
    """Return the folder of a model's highest version.

    Raises:
        FileNotFoundError: the model has no version.
    """
    versions = [folder for folder in model.glob("[0-9]*") if folder.is_dir()]
    if not versions:
        raise FileNotFoundError(f"{model} has no version")
    return max(versions, key=lambda folder: int(folder.name))


def hardware_of_one_thread() -> str:
    """Limit torch to one thread, and describe the processor."""
    import torch

    torch.set_num_threads(1)
    return hardware(torch.device("cpu")).replace("1 threads", "one thread")


def measure(
    study: Study, folder: Path, path: Path, console: Console, end_s: float, num_examples: int
) -> list[Figures] | None:
    """Compute the figures of every example of one model, and keep those of earlier calls.

    Args:
        study: the model's part.
        folder: the model's version.
        path: the file with the figures of single examples.
        console: shows progress.
        end_s: when to stop, on `time.monotonic()`'s clock.
        num_examples: how many examples are wanted.

    Returns:
        the figures, or None if the time is over before all are measured.
    """
    lines = measured_before(path, {"model": sha256(folder / MANIFEST), "seed": SEED, "methods": list(METHODS)})
    if len(lines) > num_examples:
        return lines[1 : num_examples + 1]
    model, commit = study.load(folder), commit_of_this_tree()
    inputs, labels = study.examples()
    order = np.random.default_rng(SEED).permutation(len(inputs)).tolist()
    columns = (
        TextColumn(study.name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("explained,"),
        TimeElapsedColumn(),
        TextColumn("so far, left:"),
        TimeRemainingColumn(),
    )
    found, tried = lines[1:], lines[-1].get("place", -1) + 1
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, path.open("a") as file:
        bar = progress.add_task("", total=num_examples, completed=len(found))
        for place in range(tried, len(order)):
            if len(found) == num_examples:
                break
            if time.monotonic() >= end_s:
                return None
            answer = model.answer(inputs[order[place]])
            if answer.num_features < MIN_FEATURES:
                continue
            figures = example_figures(study, answer, place, num_before=len(found))
            if labels is not None:
                figures["right"] = bool(answer.target == labels[order[place]])
            figures |= {"place": place, "commit": commit}
            found.append(json.loads(json.dumps(figures, default=_rounded)))
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
            progress.update(bar, advance=1)
    return found


def measured_before(path: Path, about: Figures) -> list[Figures]:
    """Read the lines that earlier calls have written: `about` first, then the figures of each example.

    A file about another model, seed or list of methods is overwritten, because none of its figures can be used.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines or lines[0] != about:
        lines = [about]
        write_text(path, json.dumps(about) + "\n")
    return lines


def example_figures(study: Study, answer: Answer, place: int, num_before: int) -> Figures:
    """Compute the figures of one example; the first ones are also explained by a second seed (`REPEATED`)."""
    figures = figures_of(answer, place)
    figures["repeated"] = [
        {"n_samples": n_samples, **agreement_of_seeds(answer, place, n_samples)}
        for n_samples, num_examples in REPEATED
        if num_before < num_examples
    ]
    figures["patterns"] = study.patterns(answer, answer.outputs())
    return figures


# --- all answers -----------------------------------------------------------------------------------------------------


def summary(examples: Sequence[Figures]) -> Figures:
    """Average figures over examples, with their spread."""
    rank, sizes, top = (
        np.array([one[key] for one in examples])
        for key in ("rank_correlation", "rank_correlation_of_sizes", "same_top")
    )
    random_areas = np.array([one["areas"][RANDOM] for one in examples])
    areas: Figures = {}
    for name in (*METHODS, RANDOM):
        found = np.array([one["areas"][name] for one in examples])
        areas[name] = {
            kind: {
                **mean_and_half_width(found[:, number]),
                "less_random": mean_and_half_width((found - random_areas)[:, number]),
            }
            for number, kind in enumerate(("deletion", "insertion"))
        }
    right = [one["right"] for one in examples if "right" in one]
    return {
        "features": mean_and_half_width([one["features"] for one in examples]),
        "scores": np.mean([one["scores"] for one in examples], axis=0),
        "right": statistics.mean(right) if right else None,
        "rank_correlation": rank.mean(axis=0),
        "rank_correlation_deviation": rank.std(axis=0, ddof=1),
        "rank_correlation_of_sizes": sizes.mean(axis=0),
        "same_top": top.mean(axis=0),
        "areas": areas,
        "cpu_s": {name: statistics.median(one["cpu_s"][name] for one in examples) for name in METHODS},
        "repeated": [repeated_summary(examples, n_samples) for n_samples, _ in REPEATED],
        "patterns": {
            where: {name: np.mean([one["patterns"][where][name] for one in examples], axis=0) for name in found}
            for where, found in examples[0]["patterns"].items()
        },
    }


def repeated_summary(examples: Sequence[Figures], n_samples: int | None) -> Figures:
    """Average how far the sampling methods agree with themselves between two seeds."""
    chosen = [each for one in examples for each in one["repeated"] if each["n_samples"] == n_samples]
    agreement: Figures = {name: mean_and_half_width([each[name] for each in chosen]) for name in DRAWN}
    return {"n_samples": n_samples, "num_examples": len(chosen), **agreement}


def mean_and_half_width(values: Any) -> dict[str, float]:
    """Return the mean, and the half-width of its 95 % interval (normal approximation)."""
    array = np.asarray(values, dtype=np.float64)
    return {"mean": float(array.mean()), "half_width": float(1.96 * array.std(ddof=1) / math.sqrt(len(array)))}


def in_lines(value: Any, depth: int = 0) -> str:
    """Format JSON with a line for each field, and lists of numbers in one line."""
    if isinstance(value, dict):
        lines = [f"{' ' * (depth + 1)}{json.dumps(key)}: {in_lines(each, depth + 1)}" for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        lines = [f"{' ' * (depth + 1)}{in_lines(each, depth + 1)}" for each in value]
    else:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * depth}{closing}"


def _rounded(value: Any) -> Any:
    """Convert arrays for JSON, rounded to five significant digits."""
    if isinstance(value, np.ndarray | np.generic):
        return np.vectorize(lambda number: float(f"{number:.5g}"), otypes=[float])(value).tolist()
    raise TypeError(type(value).__name__)


# --- examples --------------------------------------------------------------------------------------------------------


def _sst2() -> tuple[Sequence[Any], Sequence[int]]:
    validation = load_text_set("sst2").validation
    return validation.texts, validation.labels


def _cifar10() -> tuple[Sequence[Any], Sequence[int]]:
    test = load_image_set("cifar10").test
    return list(test.pixels_NCHW.transpose(0, 2, 3, 1)), test.labels_N.tolist()


def _shown(answer: Answer, given: str, truth: str | None) -> Figures:
    weights, _ = weights_of(answer, SEED)
    stacked_NM = np.stack([weights[method] for method in METHODS])
    return {
        "given": given,
        "names": list(answer.names),
        "answer": answer.text,
        "truth": truth,
        "score": answer.score_of(answer.whole_and_empty()[0]),
        "weights": weights,
        "rank_correlation": rank_correlations(stacked_NM),
    }


def _own_texts(model: TextModel) -> Iterator[Figures]:
    """Explain the most confident wrong answers to the everyday sentences, and the first right ones."""
    everyday = load_everyday()
    answers = [
        (model.answer(text), model.task.labels[label])
        for text, label in zip(everyday.texts, everyday.labels, strict=True)
    ]
    wrong = [each for each in answers if each[0].text != each[1]]
    wrong.sort(key=lambda each: -each[0].score_of(each[0].whole_and_empty()[0]))
    right = [each for each in answers if each[0].text == each[1] and each[0].num_features >= 2 * MIN_FEATURES]
    for answer, truth in wrong[:NUM_SHOWN] + right[:NUM_SHOWN]:
        yield _shown(answer, answer.given, truth)


def _own_translations(model: TranslationModel) -> Iterator[Figures]:
    for text in OWN_SENTENCES:
        answer = model.answer(text)
        cross_LHTS = answer.outputs()["cross_attention"]
        yield _shown(answer, text, None) | {
            "pieces": answer.pieces,
            "influence": answer.by_perturbation("occlusion", SEED),
            "attention_to_words": np.round(to_words(answer, cross_LHTS), 3),
        }


def _own_pictures(model: ImageModel) -> Iterator[Figures]:
    for name, picture in demo_images().items():
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        answer = model.answer(model.task.levels(buffer.getvalue(), field="image"))
        shown = _shown(answer, name, name)
        for method in DRAWN:
            shown["weights"][f"{method}, {MANY_SAMPLES}"] = answer.by_perturbation(method, SEED, MANY_SAMPLES)[:, 0]
        yield shown
