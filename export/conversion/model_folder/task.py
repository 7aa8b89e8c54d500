"""The part of a task that conversion needs: how its model folders are compared, measured and described."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.classifier import Comparison, compare
from export.conversion.comparison.explanation import Arrays, ExplainGraph, Row
from export.conversion.comparison.requirements import Precision
from export.conversion.sensitivity.company_search import Found, SearchEffort
from export.onnx_graphs.explanation_modules import Explained
from export.onnx_graphs.import_weights import ReadableNetwork, StoredNetwork
from model_store.folder import GRAPH_FLOAT16, GoldenExample, HalfPrecision, Manifest


class Split(Protocol):
    """One split of a data set."""

    @property
    def inputs(self) -> Sequence[Any]:
        """The inputs as a client would send them: texts, or image files."""


S = TypeVar("S", bound=Split)


class Preprocessing(NamedTuple):
    """The preprocessing of a classifier's folder."""

    golden_input: Callable[[GoldenExample], Any]  # the input of a golden example, as a client would send it
    item: Callable[[Any], Any]
    collate: Callable[[Sequence[Any]], Arrays]


class FolderTask(ABC, Generic[S]):
    """The task of a model folder; `S` is the type of the splits that its quality is measured on."""

    name: str  # in manifests and records of runs
    float16_graphs: tuple[str, ...] = (GRAPH_FLOAT16,)
    score_name: str  # the score that batch sensitivity compares, in manifest and card
    answers_name: str  # the plural noun for answers in cards

    @abstractmethod
    def measure_float16(
        self, folder: Path, manifest: Manifest, golden: Sequence[GoldenExample], measured_on: Mapping[str, S]
    ) -> HalfPrecision:
        """Measure the float16 graphs of a folder.

        Raises:
            HalfPrecisionRefused: float16 loses too much quality.
        """

    @abstractmethod
    def float16_lines(self, split: str, measured: Mapping[str, Any], precision: str) -> list[str]:
        """Write the card's lines on the quality of the float16 graphs on a split."""

    @abstractmethod
    def search_company(
        self, folder: Path, manifest: Manifest, inputs: Sequence[Any]
    ) -> tuple[SearchEffort, list[Found]]:
        """Measure how far answers change with the other items of their engine call, once per kind of answer."""


class ExplainedTask(FolderTask[S]):
    """A task with a network that can have a graph that explains."""

    explained_network: type[ReadableNetwork]

    @abstractmethod
    def explained(self, stored: StoredNetwork, folder: Path) -> Explained:
        """Wrap a network in the module that explains it."""

    @abstractmethod
    def golden_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Turn a golden example into inputs of the graph that explains, without `alpha`."""

    @abstractmethod
    def served_difference(self, folder: Path, network: Explained, graph: ExplainGraph, rows: Sequence[Row]) -> float:
        """Return the largest difference between answers of the graph that explains and those of the served graphs."""


class OneGraphTask(FolderTask[S]):
    """A task whose models answer with one graph. A result is what the task's `split_batch` returns for one input."""

    def compare(self, found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> Comparison:
        """Compare results of a converted graph with those of PyTorch."""
        return compare(found, expected)

    @abstractmethod
    def quality(
        self, results: Sequence[NDArray[np.float32]], split: S, expected: Callable[[], Sequence[NDArray[np.float32]]]
    ) -> dict[str, Any]:
        """Measure results on a split, as the manifest has the figures.

        Args:
            results: the result of each input.
            split: the inputs with their labels.
            expected: computes the results of PyTorch.
        """

    @abstractmethod
    def check_loss(
        self, measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision
    ) -> dict[str, Any]:
        """Return the manifest's figures of what a precision costs.

        Args:
            measured: the quality of the graph.
            before: the quality of PyTorch's results on the same split.
            precision: the precision of the graph's products.

        Raises:
            ConversionRefused: it costs too much.
        """

    @abstractmethod
    def quality_lines(self, manifest: Manifest) -> list[str]:
        """Write the card's lines on the measured quality and on what the precision costs."""
