"""The files and the manifest of a model folder, as the model's task reads them."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from model_store.folder import TASK_SETTINGS, FolderError, ModelFolder

# Longest input of a text model. Costs and buffers are kept for each length, so a manifest must not claim any number.
MAX_TOKENS = 131_072

C = TypeVar("C")


class FolderFiles:
    """The part of a model folder that describes its task (`service.tasks.stored_task.TaskFiles`)."""

    def __init__(self, folder: ModelFolder) -> None:
        """Read from this folder, which has a manifest."""
        assert folder.manifest is not None
        self._folder, self._manifest = folder, folder.manifest

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes, in the order of their numbers."""
        return self._manifest.labels

    @property
    def max_tokens(self) -> int:
        """Longest input of a text model, in tokens.

        Raises:
            FolderError: it is missing, or outside the lengths that this server computes with.
        """
        max_tokens = self._manifest.limits.max_tokens
        if max_tokens is None:
            raise FolderError("manifest.json: limits.max_tokens is missing")
        if not 1 <= max_tokens <= MAX_TOKENS:
            raise FolderError(f"manifest.json: limits.max_tokens is {max_tokens}; this server takes 1 to {MAX_TOKENS}")
        return max_tokens

    def text(self, name: str) -> str | None:
        """Return a text file's contents, or None if the folder has no such file.

        Raises:
            FolderError: it is not UTF-8.
        """
        return self._folder.read_text(name) if name in self._manifest.files else None

    def config(self, name: str, kind: type[C]) -> C:
        """Decode a JSON file into a message.

        Raises:
            FolderError: the file is missing, or not JSON of this type.
        """
        try:
            return msgspec.json.decode(self._folder.file(name).read_bytes(), type=kind)
        except msgspec.DecodeError as error:
            raise FolderError(f"{name}: {error}") from error

    def settings(self, kind: type[C]) -> C:
        """Decode the settings of the task; return `kind()` where the folder has none.

        Raises:
            FolderError: the file is not JSON of this type.
        """
        return self.config(TASK_SETTINGS, kind) if TASK_SETTINGS in self._manifest.files else kind()
