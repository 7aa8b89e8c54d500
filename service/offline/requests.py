"""Turns a row into a request of the Hugging Face task API, for a model in this process or on a server."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from service.errors import InvalidRequest
from service.offline.rows import FileRefused, Row, RowFile
from service.tasks.stored_task import StoredTask


@dataclass(frozen=True)
class RequestSettings:
    """What all requests of a command have in common.

    Attributes:
        top_k: number of classes in an answer; None: the task's default.
        truncate: cut texts that are too long.
    """

    top_k: int | None = None
    truncate: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """`parameters` of the task API."""
        chosen = {"top_k": self.top_k, "truncation": self.truncate or None}
        return {name: value for name, value in chosen.items() if value is not None}


def inputs_of(row: Row, folder: Path, takes_files: bool) -> str | dict[str, str]:
    """Return `inputs` of the task API: a text, a pair of texts, or the base64 of an image file.

    Args:
        row: the row, which has no problem.
        folder: the folder that paths start from.
        takes_files: whether the input is the path of a file.

    Raises:
        InvalidRequest: the file cannot be read.
    """
    if takes_files:
        try:
            return base64.b64encode((folder / row.given).read_bytes()).decode()
        except OSError as error:
            raise InvalidRequest(f"{row.place}: {row.given}: {error.strerror}") from error
    return row.given if row.pair is None else {"text": row.given, "text_pair": row.pair}


def num_values_of(output_names: Collection[str], labels: Sequence[str]) -> int:
    """Return the numbers that a regression answers with; 1 for other models.

    Args:
        output_names: names of the model's output tensors.
        labels: names of its classes or numbers.
    """
    return max(1, len(labels)) if "values" in output_names else 1


def check_settings(
    task: type[StoredTask[Any]] | StoredTask[Any], settings: RequestSettings, file: RowFile, has_pairs: bool
) -> None:
    """Check before the first row that a task takes the file's kind of input and the parameters.

    Raises:
        FileRefused: the task takes no files, no pairs or not these parameters.
    """
    if file.holds_images and not task.takes_files:
        raise FileRefused(f"a {task.name} model takes {task.accepts}; the file is a folder of images")
    inputs: Any = {"text": "a", "text_pair": "b"} if has_pairs else "a"
    try:
        request = msgspec.convert({"inputs": inputs, "parameters": settings.parameters}, task.hub_request)
        if not isinstance(task, type):  # the task of a model in this process, which also knows the values it takes
            task.read_hub(request)
    except InvalidRequest as error:
        raise FileRefused(f"a {task.name} model does not take these parameters: {error}") from error
    except msgspec.ValidationError as error:
        what = "pairs of texts (--pair-column)" if has_pairs and "$.inputs" in str(error) else "these parameters"
        raise FileRefused(f"a {task.name} model does not take {what}: {error}") from error
