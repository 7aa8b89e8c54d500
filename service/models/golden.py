"""Golden examples: raw inputs with the tensors they become and the answers of the original PyTorch model.

At load all of them are replayed (`golden_replay.py`), and while the model is served one now and then (`canary.py`).
"""

from typing import Any

from model_store.folder import FolderError, ModelFolder
from service.errors import InvalidRequest
from service.tasks.stored_task import StoredTask, TaskError


class GoldenExamples:
    """The golden examples of a folder, prepared and compared by the model's task."""

    def __init__(self, folder: ModelFolder, task: StoredTask[Any]) -> None:
        """Set up.

        Args:
            folder: the model folder with its examples.
            task: the model's task.

        Raises:
            FolderError: an example has no answer of this task's form.
        """
        assert folder.manifest is not None
        self._examples, self._task, self._tolerance = folder.golden, task, folder.manifest.tolerance
        for number, example in enumerate(folder.golden):
            try:
                task.check_example(example)
            except TaskError as error:
                raise FolderError(f"golden example {number}: {error}") from error

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self._examples)

    @property
    def searches(self) -> tuple[str, ...]:
        """The ways in which each example is answered; the first is the one of the canary."""
        return tuple(self._task.golden_searches)

    def item(self, number: int, search: str | None = None) -> Any:
        """Prepare an example as an item of the batcher.

        Args:
            number: the example.
            search: one of `searches`; the first if None.

        Raises:
            FolderError: its input tensor differs from the one in training.
        """
        try:
            return self._task.golden_item(self._examples[number], self.searches[0] if search is None else search)
        except KeyError as missing:
            raise FolderError(f"golden example {number}: {missing} is missing") from missing
        except (TaskError, InvalidRequest) as error:
            raise FolderError(f"golden example {number}: {error}") from error

    def difference(self, number: int, result: Any, how: str = "", search: str | None = None) -> float:
        """Compare a result with the golden answer, and return by how much it differs.

        Args:
            number: the example.
            result: what the engine computed for it.
            how: how it was computed, for messages.
            search: one of `searches`; the first if None.

        Raises:
            FolderError: it differs by more than the manifest allows, or the predicted answer differs.
        """
        search = self.searches[0] if search is None else search
        try:
            return self._task.golden_difference(self._examples[number], result, self._tolerance, search)
        except TaskError as error:
            where = f"golden example {number} {how}".rstrip() + (f", {search}" if search else "")
            raise FolderError(f"{where}: {error}") from error
