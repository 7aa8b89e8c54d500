"""Every family of text encoders answers like `transformers` after conversion: a matrix with tasks and precisions.

A few cells run in every run, each pair of values in `make test-slow`, the whole matrix in `make test-families`, which
records the differences (`tests/families.py`).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console

from export.conversion.checkpoints.text_families import TEXT_FAMILIES
from export.conversion.classifier import bring_to_precision, export_onnx
from export.conversion.comparison.classifier import onnx_outputs
from export.conversion.comparison.requirements import Precision
from export.conversion.text_checkpoint import classifier_of_hugging_face, embedding_of_hugging_face
from export.conversion.text_source import TextSource
from service.tasks.text.tokenization import Pair, Text
from tests.export.conversion.family_checkpoints import FAMILIES, MAX_TOKENS, TEXTS, save_checkpoint
from tests.export.conversion.random_checkpoints import add_sentence_layers
from tests.families import PAGE, RECORD, Measured, page

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
# Largest difference from `transformers`, in float32 of an element, else of all elements by their standard deviation.
LIMITS: Mapping[Precision, float] = {"float32": 1e-4, "float16": 0.02, "int8": 0.35}
# The shortest text, pairs, a text at the limit, a pair of which both texts are cut; padded together and not.
INPUTS: Sequence[Text] = (
    ".",
    "dull",
    *TEXTS[-9:],
    Pair(TEXTS[0], TEXTS[1]),
    Pair(".", TEXTS[2]),
    " ".join(TEXTS[:40]),
    Pair(" ".join(TEXTS[:9]), " ".join(TEXTS[9:18])),
    *TEXTS[:9],
)


class MatrixTask(NamedTuple):
    """A task of the matrix.

    Attributes:
        head: the end of the class name of `transformers`.
        options: fields of the configuration.
        load: loads a checkpoint as a source of conversion.
        expected: computes what the source's module must answer, from the outputs of `transformers`, row by row.
        prepare: changes a saved checkpoint.
    """

    head: str
    load: Callable[[str], TextSource]
    expected: Callable[[Any, Any], torch.Tensor]
    options: Mapping[str, Any] = {}
    prepare: Callable[[Path], Any] = lambda folder: folder


def pooled_by(name: str) -> Callable[[Path], Any]:
    """Return a function that adds a pooling of sentence-transformers to a checkpoint."""
    return lambda folder: add_sentence_layers(folder, "Pooling", pooling={f"pooling_mode_{name}": True})


def logits(output: Any, mask_1T: torch.Tensor) -> torch.Tensor:
    """Return the logits of a row."""
    logits_C: torch.Tensor = output.logits[0]
    return logits_C


CLASSIFIER = partial(MatrixTask, "ForSequenceClassification", classifier_of_hugging_face, logits)
EMBEDDING = partial(MatrixTask, "Model", embedding_of_hugging_face)
TASKS: Mapping[str, MatrixTask] = {
    "one label": CLASSIFIER(),
    "mean vectors": EMBEDDING(lambda output, mask: output.last_hidden_state[0].mean(0)),
    "several labels": CLASSIFIER({"problem_type": "multi_label_classification"}),
    "numbers": CLASSIFIER({"problem_type": "regression", "id2label": {0: "stars"}, "label2id": {"stars": 0}}),
    "vectors of the first token": EMBEDDING(
        lambda output, mask: output.last_hidden_state[0, 0], prepare=pooled_by("cls_token")
    ),
}
QUICK = (("deberta-v2", "one label"), ("mpnet", "mean vectors"))
# Each pair of a family and a kind of task, of a task and a precision, of a family and a precision.
PAIRWISE = tuple((family, task) for family in TEXT_FAMILIES for task in ("one label", "mean vectors"))


def cells() -> list[Any]:
    """Return the families and tasks of the matrix, with the marks that say in which runs they are computed."""
    marks = {key: [pytest.mark.slow] for key in PAIRWISE} | {key: [] for key in QUICK}
    return [
        pytest.param(family, task, marks=marks.get((family, task), [pytest.mark.families]))
        for family in TEXT_FAMILIES
        for task in TASKS
    ]


@pytest.mark.parametrize(("family", "task"), cells())
def test_a_family_answers_like_transformers(family: str, task: str, tmp_path: Path) -> None:
    """In batches and alone, from one token to the limit, for texts and pairs, in all precisions."""
    made = TASKS[task]
    folder = save_checkpoint(family, tmp_path / family, made.head, **made.options)
    made.prepare(folder)
    source = made.load(str(folder))
    inputs = [given for given in INPUTS if source.task.optional_inputs or not isinstance(given, Pair)]
    expected = answers_of_transformers(folder, made, inputs)
    assert np.std(np.stack(expected), axis=0).min() > 0.01  # the answers do differ
    exported = tmp_path / "exported.onnx"
    export_onnx(source, exported)
    for precision in PRECISIONS:
        graph = tmp_path / f"{precision}.onnx"
        copyfile(exported, graph)
        bring_to_precision(graph, precision, source.quantized_operators, Console(quiet=True))
        found = max(
            difference(onnx_outputs(source, graph, inputs, batch_size), expected, precision) for batch_size in (1, 7)
        )
        assert found <= LIMITS[precision], f"{precision}: {found}"
        record(family, task, precision, found)


def answers_of_transformers(folder: Path, task: MatrixTask, inputs: Sequence[Text]) -> list[NDArray[np.float32]]:
    """Compute each input with `transformers`, alone and with its own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    network = getattr(transformers, config.architectures[0])
    model = network.from_pretrained(folder, attn_implementation="eager").eval()
    answers = []
    with torch.inference_mode():
        for given in inputs:
            texts = given if isinstance(given, Pair) else (given,)
            tokens = tokenizer(*texts, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            if "DistilBert" in network.__name__:
                tokens.pop("token_type_ids", None)
            answers.append(task.expected(model(**tokens), tokens["attention_mask"]).numpy())
    return answers


def difference(
    found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]], precision: Precision
) -> float:
    """Measure how far answers are from those of `transformers`, as `LIMITS` has it."""
    apart = np.stack(found) - np.stack(expected)
    if precision == "float32":
        return float(np.abs(apart).max())
    return float(np.sqrt((apart**2).mean()) / np.stack(expected).std(axis=0).mean())


def record(family: str, task: str, precision: str, found: float) -> None:
    """Add a measurement to the record of `make test-families`."""
    if path := os.environ.get(RECORD):
        with Path(path).open("a") as file:
            entry = {"family": family, "task": task, "precision": precision, "difference": found}
            file.write(json.dumps(entry) + "\n")


def test_every_family_is_tested_and_on_the_page() -> None:
    """A family that is offered has a checkpoint, and a row of docs/families.md with the largest differences."""
    assert set(FAMILIES) == set(TEXT_FAMILIES)
    measured = [
        Measured(family, task, precision, found)
        for family in TEXT_FAMILIES
        for precision, figures in (("float32", (2e-6, 3e-6)), ("float16", (0.01, 0.002)), ("int8", (0.2, 0.1)))
        for task, found in zip(("one label", "numbers"), figures, strict=True)
    ]
    text = page(measured, "abc", "2026-01-01")
    rows = [line for line in text.splitlines() if line.endswith("| 3e-06 | 0.01 | 0.2 |")]
    assert len(rows) == len(TEXT_FAMILIES)
    assert "tasks: one label, numbers." in text
    assert all(f"| {family.name} | {kind} |" in PAGE.read_text() for kind, family in TEXT_FAMILIES.items())
