"""Inputs of texts in the forms of other servers' APIs, and the model that a request names or means."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.requests import Request

from service.errors import InvalidRequest, Unsupported
from service.prediction.catalog import ModelCatalog
from service.prediction.validation import described
from service.tasks.stored_task import StoredTask
from service.tasks.task import Task
from service.tasks.text.tokenization import Pair, Text, TextInput, TokenIds

# A text, the ids of a text, or a list of texts and of ids.
TextsOrIds = str | list[str | int | list[int]]
# A text, a pair of texts, or a list of texts and pairs, each of which is a list.
TextsOrPairs = str | list[str | list[str]]


class Purpose(NamedTuple):
    """The models that an operation can ask.

    Attributes:
        kinds: tasks of these models.
        num_labels: number of their labels; None for any.
    """

    kinds: tuple[type[StoredTask[Any]], ...]
    num_labels: int | None = None

    def fits(self, task: Task[Any]) -> bool:
        """Whether a model of a task can be asked."""
        return any(task.name == kind.name for kind in self.kinds) and self.num_labels in (None, len(task.labels))

    def __str__(self) -> str:
        names = " or ".join(kind.name for kind in self.kinds)
        return names if self.num_labels is None else f"{names} with {self.num_labels} label"


class ModelChoice:
    """Finds the model that a request is for: in the path, in the body, or the only one that fits."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self._catalog = catalog

    def task_of(self, request: Request, named: str | None, purpose: Purpose) -> Any:
        """Return the task of the model that a request is for, and put the model's name into the path's parameters.

        Args:
            request: the request; its path may name the model.
            named: name of the model in the body, if it has one.
            purpose: the models that can be asked.

        Raises:
            NotFound, Unavailable: the model is not in the store, or cannot answer.
            Unsupported: the model has another task, or none of the models fits.
            InvalidRequest: several models fit, or path and body name different ones.
        """
        in_path = request.path_params.get("model")
        if in_path is not None and named not in (None, in_path):
            raise InvalidRequest(f"model is {named!r}, but the path names {in_path!r}")
        name = in_path or named or self._only_model(purpose)
        request.path_params["model"] = name
        task = self._catalog.hub_task(name)
        if not purpose.fits(task):
            fitting = ", ".join(self._catalog.models_whose(purpose.fits)) or "none"
            raise Unsupported(
                f"model {name!r} is {described(task)}; this takes {purpose}, of which the store has: {fitting}"
            )
        return task

    def _only_model(self, purpose: Purpose) -> str:
        names = self._catalog.models_whose(purpose.fits)
        if not names:
            raise Unsupported(f"the store has no model that is ready for this, which takes {purpose}")
        if len(names) > 1:
            raise InvalidRequest(
                f"model is missing: name one of {', '.join(names)} in the body, or in the path, /models/<name>/..."
            )
        return names[0]


def texts_or_ids(inputs: TextsOrIds, name: str) -> tuple[list[TextInput], str]:
    """Return the inputs of a request, and the name of one in messages, in which `{}` becomes its number.

    Args:
        inputs: a text, ids, or a list of them. A list of integers is the ids of one text.
        name: name of the field.

    Raises:
        InvalidRequest: the list has ids beside texts or lists.
    """
    if isinstance(inputs, str):
        return [inputs], name
    are_ids = [isinstance(each, int) for each in inputs]
    if not any(are_ids):
        return [TokenIds(each) if isinstance(each, list) else str(each) for each in inputs], name + "[{}]"
    if not all(are_ids):
        raise InvalidRequest(
            f"{name}[{are_ids.index(not are_ids[0])}] does not go with {name}[0]: a list has the ids of one text, or"
            " texts and lists of ids"
        )
    return [TokenIds([each for each in inputs if isinstance(each, int)])], name


def texts_or_pairs(inputs: TextsOrPairs, name: str) -> tuple[list[Text], str, bool]:
    """Return the inputs of a request, the name of one in messages, and whether they are a list of inputs.

    Args:
        inputs: a text, a list of two texts, which is a pair, or a list of lists of one or two texts.
        name: name of the field.

    Raises:
        InvalidRequest: a list does not have one or two texts.
    """
    if isinstance(inputs, str):
        return [inputs], name, False
    if inputs and all(isinstance(each, str) for each in inputs):
        return [_text_or_pair([str(each) for each in inputs], name)], name, False
    field = name + "[{}]"
    parts = [
        each if isinstance(each, str) else _text_or_pair(each, field.format(number))
        for number, each in enumerate(inputs)
    ]
    return parts, field, True


def _text_or_pair(texts: Sequence[str], field: str) -> Text:
    if len(texts) == 1:
        return texts[0]
    if len(texts) == 2:
        return Pair(*texts)
    raise InvalidRequest(
        f"{field} has {len(texts)} texts; a list of one text is a single text, of two a pair, and several inputs are a"
        " list of such lists"
    )
