"""The models of the store as clients see them: index, metadata, cards, readiness."""

from service.errors import NotFound, Unavailable
from service.explanation.messages import METHODS
from service.explanation.planning import methods_of
from service.models.repository import ModelRepository, ModelState, ServedModel
from service.prediction.messages import IndexedModel, ModelDescription, TaskName
from service.tasks.classification import Classifier
from service.tasks.image_classification import ImageClassification
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification
from service.tasks.translation import Translation

TASK_NAMES: dict[type, TaskName] = {
    TextClassification: "text-classification",
    ImageClassification: "image-classification",
    Translation: "translation",
    RawTensors: "tensors",
}


class ModelCatalog:
    """Describes the models of a repository and tells which of them are ready."""

    def __init__(self, repository: ModelRepository) -> None:
        """Describe the models of this repository, always in its present state."""
        self._repository = repository

    def describe(self, name: str, version: str = "") -> ModelDescription:
        """Return the metadata of a model.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        return ModelDescription(
            name,
            self._repository.versions(name),
            "onnxruntime_onnx",
            model.task.inputs,
            model.task.outputs,
            _properties(model),
        )

    def index(self) -> list[IndexedModel]:
        """Return an entry for every model of the store by name, ready or not."""
        names = sorted({state.name for state in self._repository.states.values()})
        return [self._entry(self._repository.state(name)) for name in names]

    def _entry(self, state: ModelState) -> IndexedModel:
        served = state.served
        task = None if served is None else served.task
        problem = self.problem_of(state.name)
        return IndexedModel(
            name=state.name,
            version=state.version,
            versions=self._repository.versions(state.name),
            task=None if task is None else TASK_NAMES[type(task)],
            labels=task.labels if isinstance(task, Classifier) else [],
            explain=[] if served is None else [*methods_of(served)],
            ready=problem is None,
            reason=problem,
            precision=None if served is None else served.precision,
            cache=None if served is None else served.cache_place,
            batching=None if served is None else served.batching.describe(),
        )

    def card(self, name: str, version: str = "") -> str:
        """Return the model card, in Markdown.

        Raises:
            NotFound: the model's folder has no card; or as for a request.
            Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        if model.card is None:
            raise NotFound(f"model {model.name!r} version {model.version!r} has no model card (README.md)")
        return model.card

    def problem_of(self, name: str, version: str = "") -> str | None:
        """Return why a model would not answer now, or None if it would.

        Raises:
            NotFound: the store has no such model.
        """
        if self.draining or self._repository.ending:
            return "the server is shutting down"
        try:
            return self._repository.state(name, version).current_problem()
        except Unavailable as error:
            return str(error)

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down."""
        return self._repository.draining

    @property
    def extensions(self) -> list[str]:
        """Extensions in the server's metadata: of the protocol, and the device that computes.

        All explanation methods are listed; the metadata of a model lists the ones that it supports.
        """
        methods = [f"explain:{method}" for method in METHODS]
        return ["binary_tensor_data", "explain", *methods, f"device:{self._repository.device}"]

    def not_ready_because(self) -> str | None:
        """Return why the server should get no requests now, or None."""
        return self._repository.not_ready_because()

    def problems(self) -> dict[str, str]:
        """Return the models that would not answer now, each with the reason."""
        return self._repository.problems()

    def model_names(self) -> list[str]:
        """Return the models with a version that is ready, sorted."""
        names = {state.name for state in self._repository.states.values() if state.current_problem() is None}
        return sorted(names)

    def text_classifiers(self) -> list[str]:
        """Return the ready models that classify texts, sorted."""
        return self._names_of(TextClassification)

    def image_classifiers(self) -> list[str]:
        """Return the ready models that classify images, sorted."""
        return self._names_of(ImageClassification)

    def translators(self) -> list[str]:
        """Return the ready models that translate texts, sorted."""
        return self._names_of(Translation)

    def _names_of(self, kind: type[Classifier] | type[Translation]) -> list[str]:
        served = ((name, self._repository.state(name).served) for name in self.model_names())
        return [name for name, model in served if model and isinstance(model.task, kind)]

    def task_of(self, name: str) -> TaskName:
        """Return the hub's name of a model's task; "tensors" for a bare model.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        return TASK_NAMES[type(self._repository.get(name).task)]


def _properties(model: ServedModel) -> dict[str, str]:
    properties = {"batching": model.batching.describe()}
    if methods := methods_of(model):
        properties["explain"] = ",".join(methods)
    if model.remark is not None:
        properties["remark"] = model.remark
    if isinstance(model.task, RawTensors) and model.task.optional_inputs:
        properties["optional_inputs"] = ",".join(spec.name for spec in model.task.optional_inputs)
    return properties
