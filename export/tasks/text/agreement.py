"""The part that tasks share whose quality is measured without labels: by agreement with PyTorch's answers.

Shapes: B rows, T tokens, C numbers of a row or token.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.conversion.classifier import convert
from export.conversion.comparison.classifier import MAX_LOGIT_DIFFERENCE, Comparison
from export.conversion.comparison.requirements import MIN_COMPARED, ConversionRefused, Precision
from export.conversion.float16 import HalfPrecisionRefused, float16_outputs
from export.conversion.model_folder.opening import served_task_of
from export.conversion.model_folder.task import OneGraphTask
from export.conversion.sensitivity.batch_sensitivity import invented_texts
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.onnx_graphs.passes import cpu_session
from export.tasks.task import ExportTask, Target
from export.tasks.text.rows_source import RowsSource, rows_of
from export.training.quality import MIN_FLOAT16_TOLERANCE, softmax, twice
from model_store.folder import GRAPH, GoldenExample, HalfPrecision, Manifest, Tolerance
from service.tasks.text.rows import RowResults, RowsTask, TextRows

MIN_AGREEMENT = 0.995  # of int8 and float16 with PyTorch in float32, over the measured answers
# Where a row has one number, such as the score of a text: Spearman's correlation of the ranks that the numbers give to
# all measured rows. Most pairs of rows whose order changes have nearly equal numbers.
MIN_RANK_CORRELATION = 0.99
NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS = 6, 96  # texts of each kind, and words of a long one
MADE_UP = "made-up texts"
NEEDED = f"at least {100 * MIN_AGREEMENT:.1f} % are needed, or a rank correlation of {MIN_RANK_CORRELATION}"
Numbers = NDArray[np.float32]  # of an input, [R, C] or [T, C]


@dataclass(frozen=True)
class Inputs:
    """Inputs to measure answers on; they need no labels, because PyTorch's answers are the expected ones."""

    inputs: list[Any]


class AgreementTask(OneGraphTask[Inputs], ExportTask[Inputs]):
    """A task of text encoders that is measured by how many answers are those of PyTorch."""

    needs_labels = False
    score_name, answers_name = "probability", "answers"

    @abstractmethod
    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Make inputs of generated texts, as the served task takes them."""

    def adapted(self, served: RowsTask, given: Any) -> Any:
        """Write a generated input as a model needs it."""
        return given

    def compared(self, count: int) -> list[Any]:
        """Make inputs to compare and measure on."""
        from export.conversion.golden_texts import made_up_sentences

        return self.made_up(made_up_sentences(count))

    def write(self, source: RowsSource, target: Target, console: Console) -> None:
        """Convert a source; what a lossy precision costs is measured on generated texts."""
        inputs = Inputs([self.adapted(source.served, given) for given in self.compared(MIN_COMPARED)])
        convert(
            source,
            self,
            name=target.name,
            store=target.store,
            precision=target.precision,
            console=console,
            compare_on=inputs.inputs,
            labelled=inputs,
            split=MADE_UP,
            about={"measured_on": MADE_UP},
        )

    def material(self, known: Collection[Any]) -> Mapping[str, Inputs] | None:
        """Generate the inputs that every model of the task is measured on."""
        return {MADE_UP: Inputs(self.compared(MIN_COMPARED))} if MADE_UP in known else None

    def decided(self, numbers: Numbers) -> NDArray[np.int64]:
        """Return what the numbers of an input decide: the largest of each row or token."""
        decided: NDArray[np.int64] = numbers.argmax(-1)
        return decided

    def compare(self, found: Sequence[Numbers], expected: Sequence[Numbers]) -> Comparison:
        """Compare numbers with those of PyTorch; two that lie closer than the tolerance may change their order."""
        difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        changed = sum(_changes(a, b) for a, b in zip(found, expected, strict=True))
        return Comparison(len(found), difference, changed)

    def quality(
        self, results: Sequence[Numbers], split: Inputs, expected: Callable[[], Sequence[Numbers]]
    ) -> dict[str, Any]:
        """Measure how many answers are those of PyTorch."""
        return self.agreement(results, expected())

    def agreement(self, found: Sequence[Numbers], expected: Sequence[Numbers]) -> dict[str, Any]:
        """Count equal answers; where a row has one number, correlate the ranks of all rows."""
        worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        figures: dict[str, Any] = {"num_examples": len(found), "max_abs_logit_difference": worst}
        if expected[0].shape[-1] == 1:
            ours, theirs = np.concatenate(found).ravel(), np.concatenate(expected).ravel()
            return figures | {"num_answers": len(ours), "rank_correlation": rank_correlation(ours, theirs)}
        pairs = [(self.decided(a), self.decided(b)) for a, b in zip(found, expected, strict=True)]
        same, total = sum(int((a == b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)
        return figures | {"num_answers": total, "agreement": same / max(1, total)}

    def check_loss(
        self, measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision
    ) -> dict[str, Any]:
        """Refuse a precision that changes too many answers."""
        if not is_close(measured):
            raise ConversionRefused(f"{precision} changes the answers: {self.words_of(measured)}; {NEEDED}")
        return {}

    def words_of(self, measured: Mapping[str, Any]) -> str:
        """Write how far answers agree with those in float32."""
        if "rank_correlation" in measured:
            return f"rank correlation {measured['rank_correlation']:.4f} over {measured['num_answers']} scores"
        return f"{100 * measured['agreement']:.2f} % of {measured['num_answers']} {self.answers_name} agree"

    def quality_lines(self, manifest: Manifest) -> list[str]:
        """Write the agreement with PyTorch on each split."""
        lines = []
        for split, measured in manifest.quality.items():
            if isinstance(measured, dict) and "num_answers" in measured:
                lines += [
                    f"On {split}, n = {measured['num_examples']}, with the graph of this folder, compared with PyTorch"
                    f" in float32: {self.words_of(measured)}. Nothing was measured on labelled inputs.",
                    "",
                ]
        return [*lines, "Compared with the model before conversion:", ""]

    def measure_float16(
        self, folder: Path, manifest: Manifest, golden: Sequence[GoldenExample], measured_on: Mapping[str, Inputs]
    ) -> HalfPrecision:
        """Measure the agreement of the float16 graph with the same weights in float32."""
        task, worst, quality = self.opened(folder, manifest), 0.0, dict[str, Any]()
        for split, inputs in measured_on.items():
            items = [rows_of(task, self.adapted(task, given)) for given in inputs.inputs]
            rows = float16_outputs(folder, manifest.outputs[0].name, items, task.collate)
            half, whole = (_numbers(task, items, each) for each in rows)
            if not all(np.isfinite(each).all() for each in half):
                raise HalfPrecisionRefused("its values overflow half precision")
            quality[split] = self.agreement(half, whole)
            worst = max(worst, quality[split]["max_abs_logit_difference"])
            if not is_close(quality[split]):
                raise HalfPrecisionRefused(f"{self.words_of(quality[split])}; {NEEDED}")
        tolerance = manifest.tolerance.max_abs_logit_difference
        return HalfPrecision(Tolerance(max(twice(worst + tolerance), MIN_FLOAT16_TOLERANCE), False), quality)

    def float16_lines(self, split: str, measured: Mapping[str, Any], precision: str) -> list[str]:
        """Write the agreement of the float16 graph."""
        return [
            f"- {split}, n = {measured['num_examples']}, compared with the same weights in float32:"
            f" {self.words_of(measured)}"
        ]

    def search_company(
        self, folder: Path, manifest: Manifest, inputs: Sequence[Any]
    ) -> tuple[SearchEffort, list[Found]]:
        """Measure changes of probabilities."""
        task, session, effort = self.opened(folder, manifest), cpu_session(folder / GRAPH), SearchEffort()
        output = manifest.outputs[0].name

        def answer(items: Sequence[TextRows]) -> list[Answer]:
            computed = session.run([output], task.collate(items))[0]
            return [self.answer_of(result) for result in task.split_batch({output: computed}, items)]

        invented = self.made_up(invented_texts(folder, NUM_INVENTED_TEXTS, MAX_INVENTED_WORDS))
        items, unusual = ([rows_of(task, self.adapted(task, given)) for given in each] for each in (inputs, invented))
        return effort, [search_company(answer, items, unusual, attrgetter("length"), effort)]

    def answer_of(self, result: RowResults) -> Answer:
        """Return what an input's numbers say, and its probabilities."""
        numbers = result.numbers
        if numbers.shape[-1] == 1:
            return Answer((0,), tuple((1 / (1 + np.exp(-numbers.astype(np.float64)))).ravel().tolist()))
        return Answer(tuple(self.decided(numbers).ravel().tolist()), tuple(softmax(numbers).ravel().tolist()))

    def opened(self, folder: Path, manifest: Manifest) -> RowsTask:
        """Open the served task of a folder."""
        task: RowsTask = served_task_of(folder, manifest)
        return task


def _numbers(task: RowsTask, items: Sequence[TextRows], rows: Sequence[Numbers]) -> list[Numbers]:
    """Put the rows of each item together; each row alone, because rows of different calls differ in padding."""
    found, first = [], 0
    for item in items:
        own = rows[first : first + item.rows]
        if task.per_token:
            own = [row_TC[: part.length] for row_TC, part in zip(own, item.parts, strict=True)]
        found.append(RowResults(item, [*own]).numbers)
        first += item.rows
    return found


def _changes(found: Numbers, expected: Numbers) -> bool:
    """Whether the largest number of a row or token is another one, by more than rounding."""
    theirs = np.take_along_axis(expected, found.argmax(-1)[..., None], -1)[..., 0]
    return bool((expected.max(-1) - theirs > 2 * MAX_LOGIT_DIFFERENCE).any())


def is_close(measured: Mapping[str, Any]) -> bool:
    """Whether answers agree with those in float32 as far as a conversion must keep them."""
    if "rank_correlation" in measured:
        return bool(measured["rank_correlation"] >= MIN_RANK_CORRELATION)
    return bool(measured["agreement"] >= MIN_AGREEMENT)


def rank_correlation(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Compute Spearman's correlation of two lists of scores."""
    ours, theirs = (np.argsort(np.argsort(scores, kind="stable")).astype(np.float64) for scores in (found, expected))
    return float(np.corrcoef(ours, theirs)[0, 1])
