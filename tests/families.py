"""Writes docs/families.md: the families of text encoders that are loaded, and how far they are from `transformers`.

`make test-families` measures every cell of the matrix of families, tasks and precisions, and calls this.
"""

import json
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

RECORD = "TESTS_FAMILIES_RECORD"  # variable with the path of the file that the tests add their measurements to
PAGE = Path(__file__).parent.parent / "docs/families.md"
PRECISIONS = ("float32", "float16", "int8")


class Measured(NamedTuple):
    """The difference of a cell of the matrix."""

    family: str
    task: str
    precision: str
    difference: float


def read(record: Path) -> list[Measured]:
    """Read the record of a run."""
    return [Measured(**json.loads(line)) for line in record.read_text().splitlines()]


def page(measured: Iterable[Measured], commit: str, date: str) -> str:
    """Write the page; every family of the table has a row."""
    from export.conversion.checkpoints.text_families import TEXT_FAMILIES

    worst: dict[tuple[str, str], float] = {}
    tasks = []
    for each in measured:
        key = each.family, each.precision
        worst[key] = max(worst.get(key, 0.0), each.difference)
        tasks.append(each.task)
    lines = [
        "# Families of text encoders",
        "",
        "`python -m export load FOLDER` takes checkpoints of these families in Hugging Face form, for every task of"
        " texts. `make test-families` wrote this page.",
        "",
        f"Measured on commit {commit}, {date}: random networks of two layers and width 32, with the tokenizer class of"
        f" the family; tasks: {', '.join(dict.fromkeys(tasks))}. Inputs are texts and pairs from one token to the"
        " limit, alone and in padded batches of 7. The reference is `transformers`, one input at a time. float32:"
        " largest difference of a number. float16 and int8: root mean square of the differences, divided by the"
        " standard deviation of the numbers over the inputs. Random networks are harder to quantize than trained ones.",
        "",
        "| family | `model_type` | limit of the length | attention in the graph | float32 | float16 | int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model_type, family in TEXT_FAMILIES.items():
        attention = "as written" if family.attention == "as written" else "one operator"
        figures = [f"{worst[model_type, precision]:.2g}" for precision in PRECISIONS]
        lines.append(f"| {family.name} | {model_type} | {LIMITS_OF[family.positions]} | {attention} |"
                     f" {' | '.join(figures)} |")  # fmt: skip
    return "\n".join([*lines, "", TOKENIZERS])


LIMITS_OF = {
    "absolute": "table of positions",
    "after padding": "table of positions",
    "relative": "`model_max_length`",
    "rotary": "length of training",
}
TOKENIZERS = """\
The shorter of that limit and the tokenizer's `model_max_length` counts.

Tokenizers are read from `tokenizer.json`, `vocab.txt` of WordPiece, `vocab.json` with `merges.txt`, or a model of
SentencePiece. Loading proves that the served form gives the ids and token types of `transformers`, for texts, pairs and
truncated ones. Tokenizers that exist only as Python code (PhoBERT, BERTweet, Japanese BERT with MeCab) are refused.

## ONNX graphs that others exported

A folder of Optimum (`model.onnx` or `onnx/model.onnx`, `config.json`, tokenizer) without PyTorch weights is served with
its graph as it is; `load FOLDER/onnx/model_quantized.onnx` chooses a variant. Golden examples are then the graph's own
answers. Loading proves that answers do not depend on padding, but not that they are those of the original model: the
model card, the log and `remark` of `GET /v2/models/NAME` say "not compared with PyTorch". If the weights lie beside the
graph, they are converted and compared as usual, or, for a graph that is named, compared with it.
"""


def write_page(record: Path) -> None:
    """Write the page from a record of the whole matrix."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, cwd=PAGE.parent
    ).stdout.strip()
    PAGE.write_text(page(read(record), commit, f"{datetime.now(UTC):%Y-%m-%d}"))
