"""Golden examples: raw inputs with the tensors they become and the answers of the original PyTorch model.

At load all of them are replayed (`golden_replay.py`), and while the model is served one now and then (`canary.py`).

Shapes: C classes.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.folder import FolderError, GoldenExample, ModelFolder
from service.errors import InvalidRequest
from service.tasks.translation import Translation
from service.tasks.translation_search import GOLDEN_SEARCHES, Sentence

CANARY_SEARCH = "greedy"  # the key of `GOLDEN_SEARCHES` that the canary uses


class Golden(Protocol):
    """The golden examples of a folder."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""

    def item(self, number: int) -> Any:
        """Preprocess an example into an item of the batcher.

        Raises:
            FolderError: its input tensor differs from the one in training.
        """

    def difference(self, number: int, result: Any, how: str = "") -> float:
        """Compare a result with the golden answer, and return by how much it differs.

        Args:
            number: the example.
            result: what the engine computed for it.
            how: how it was computed, for messages.

        Raises:
            FolderError: it differs by more than the manifest allows, or the answer is another one.
        """


class GoldenLogits:
    """Golden examples of a classifier, compared by their logits."""

    def __init__(self, folder: ModelFolder, item_of: Callable[[GoldenExample], Any]) -> None:
        """Set up.

        Args:
            folder: the model folder with its examples.
            item_of: preprocesses an example; raises FolderError where its input tensor differs from that of training.

        Raises:
            FolderError: the number of logits of an example is not the number of labels.
        """
        assert folder.manifest is not None
        self._examples, self._item_of, self._tolerance = folder.golden, item_of, folder.manifest.tolerance
        num_labels = len(folder.manifest.labels)
        for number, example in enumerate(folder.golden):
            if (num_logits := len(example.outputs.get("logits", []))) != num_labels:
                raise FolderError(
                    f"golden example {number}: {num_logits} logits, but {num_labels} labels in manifest.json"
                )

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def item(self, number: int) -> Any:
        """Preprocess an example into an item of the batcher.

        Raises:
            FolderError: its input tensor differs from the one in training.
        """
        try:
            return self._item_of(self._examples[number])
        except KeyError as missing:
            raise FolderError(f"golden example {number}: {missing} is missing") from missing
        except (FolderError, InvalidRequest) as error:
            raise FolderError(f"golden example {number}: {error}") from error

    def difference(self, number: int, result: NDArray[np.float32], how: str = "") -> float:
        """Compare logits, float32 [C], with the golden ones, and return the largest absolute difference.

        Raises:
            FolderError: it exceeds what the manifest allows, or the label is another one.
        """
        where = f"golden example {number} {how}".rstrip()
        golden_C, allowed = np.array(self._examples[number].outputs["logits"]), self._tolerance.max_abs_logit_difference
        if result.shape != golden_C.shape:
            raise FolderError(f"{where}: logits of shape {result.shape}, not {golden_C.shape}")
        off_by = float(np.abs(result - golden_C).max())
        if not off_by <= allowed:
            raise FolderError(f"{where}: logits differ by {off_by:.3g}, the manifest allows {allowed:g}")
        if self._tolerance.labels_must_agree and result.argmax() != golden_C.argmax():
            raise FolderError(f"{where}: another label")
        return off_by


class GoldenTranslations:
    """Golden examples of a translation model, compared by their scores.

    The texts are not compared, because rounding may swap two translations that are almost equally likely.
    """

    def __init__(self, folder: ModelFolder, task: Translation) -> None:
        assert folder.manifest is not None
        self._examples, self._task = folder.golden, task
        self._allowed = folder.manifest.tolerance.max_abs_logit_difference

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def item(self, number: int, search: str = CANARY_SEARCH) -> Sentence:
        """Preprocess an example into a sentence that one of `GOLDEN_SEARCHES` translates.

        Raises:
            FolderError: its input ids differ from those in training.
        """
        example = self._examples[number]
        try:
            sentence = self._task.preprocess(
                example.inputs["text"], truncate=False, field="text", request=GOLDEN_SEARCHES[search]
            )
            expected = example.tensors["input_ids"]
        except KeyError as missing:
            raise FolderError(f"golden example {number}: {missing} is missing") from missing
        except InvalidRequest as error:
            raise FolderError(f"golden example {number}: {error}") from error
        if sentence.ids != expected:
            raise FolderError(f"golden example {number}: the tokenizer gives other ids than in training")
        return sentence

    def difference(self, number: int, result: Sentence, how: str = "", search: str = CANARY_SEARCH) -> float:
        """Compare the score of a translation, its length-normalised log probability, with the golden score.

        Raises:
            FolderError: the scores differ by more than the manifest allows.
        """
        (golden,) = self._examples[number].outputs.get(search, [np.nan])[:1]
        off_by = float(abs(result.search.best().score - golden))
        if not off_by <= self._allowed:
            where = f"golden example {number} {how}".rstrip()
            raise FolderError(
                f"{where}, {search}: the score differs by {off_by:.3g}, the manifest allows {self._allowed:g}"
            )
        return off_by
