"""The models of the store as clients see them: index, metadata, cards, readiness."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from service.errors import InvalidRequest, NotFound, Unavailable
from service.explanation.messages import METHODS
from service.explanation.planning import methods_of
from service.models.repository import ModelRepository, ModelState, ServedModel
from service.prediction.messages import IndexedModel, IndexedVersion, ModelConfiguration, ModelDescription
from service.prediction.statistics import ModelStatistics, model_statistics
from service.tasks.stored_task import StoredTask
from service.tasks.table import TASKS
from service.tasks.task import Task
from service.tensors import TensorSpec

PLATFORM = "onnxruntime_onnx"
# By Triton's names. "model_repository" is not among them, because it promises to load and unload models.
TRITON_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")


class ModelCatalog:
    """Describes the models of a repository and tells which of them are ready."""

    def __init__(self, repository: ModelRepository) -> None:
        """Describe the models of `repository` in their state at the time of each call."""
        self._repository = repository
        self._triton_compatible = repository.config.triton_compatible == "on"

    @property
    def server_name(self) -> str:
        """Name of the server in its metadata."""
        return "triton" if self._triton_compatible else "heed"

    def describe(self, name: str, version: str = "") -> ModelDescription:
        """Return the metadata of a model.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        inputs = model.task.inputs
        if self._triton_compatible and model.task.max_inputs(1) > 0:
            inputs = tuple(map(_as_column, inputs))
        return ModelDescription(
            name,
            self._repository.versions(name),
            PLATFORM,
            inputs,
            model.task.outputs,
            _properties(model),
        )

    def configuration(self, name: str, version: str = "") -> ModelConfiguration:
        """Return how a model is served.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        repository, model = self._repository, self._repository.get(name, version)
        task = model.task
        return ModelConfiguration(
            name=name,
            platform=PLATFORM,
            inputs=task.inputs,
            outputs=task.outputs,
            max_batch_size=task.max_inputs(repository.config.max_request_rows),
            joins_requests=model.loaded.batching.joined,
            streams=model.batcher.joins_running_batches,
            instances=repository.instances,
            on_gpu=repository.device == "cuda",
        )

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """Return the statistics of the model versions that are served, in the order of the store.

        Args:
            name: name of a model; empty for all of them.
            version: version of the model; empty for all of them.

        Raises:
            NotFound: the store has no such model or version.
            Unavailable: the named model or version is not served.
        """
        if name:
            self._repository.get(name, version)
        return [
            model_statistics(*key, self._repository.metrics.totals(*key))
            for key, state in self._repository.states.items()
            if state.served is not None and name in ("", key[0]) and version in ("", key[1])
        ]

    def versions(self) -> list[IndexedVersion]:
        """Return every folder of the store by name and version, with its state."""
        return [self._indexed_version(*key) for key in self._repository.states]

    def _indexed_version(self, name: str, version: str) -> IndexedVersion:
        problem = self.problem_of(name, version)
        if self._repository.states[name, version].is_loading and not self.draining:
            return IndexedVersion(name, version, "LOADING", problem)
        return IndexedVersion(name, version, "READY" if problem is None else "UNAVAILABLE", problem)

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
            task=None if task is None else task.name,
            labels=[] if task is None else [*task.labels],
            explain=[] if served is None else [*methods_of(served)],
            ready=problem is None,
            reason=problem,
            precision=None if served is None else served.loaded.precision,
            cache=None if served is None else served.loaded.cache_place,
            batching=None if served is None else served.loaded.batching.describe(),
        )

    def card(self, name: str, version: str = "") -> str:
        """Return the model card, in Markdown.

        Raises:
            NotFound: the model's folder has no card; or as for a request.
            Unavailable: as for a request.
        """
        model = self._repository.get(name, version)
        if (card := model.loaded.card) is None:
            raise NotFound(f"model {model.name!r} version {model.version!r} has no model card (README.md)")
        return card

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
    def num_cores(self) -> int:
        """Cores that the server computes on."""
        return self._repository.num_cores

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
        return [*TRITON_EXTENSIONS, "explain", *methods, f"device:{self._repository.device}"]

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

    def example_request(self) -> tuple[str, str] | None:
        """Return a ready model and the arguments of curl that try it, or None if the store has no model to try."""
        tasks = {name: self._repository.get(name).task for name in self.model_names()}
        for kind in TASKS.values():
            for name, task in tasks.items():
                if kind.example is not None and task.name == kind.name:
                    return name, kind.example
        return None

    def models_whose(self, fits: Callable[[Task[Any]], bool]) -> list[str]:
        """Return the ready models whose task fits, sorted."""
        return [name for name in self.model_names() if fits(self._repository.get(name).task)]

    def precision_of(self, name: str) -> str | None:
        """Return the precision of a model's graphs; None for a bare graph.

        Raises:
            NotFound, Unavailable: as for a request.
        """
        return self._repository.get(name).loaded.precision

    def hub_task(self, name: str) -> StoredTask[Any]:
        """Return the task of a model, for a call of the task API.

        Raises:
            NotFound, Unavailable: as for a request.
            InvalidRequest: the model is a bare graph, which has no such API.
        """
        task = self._repository.get(name).task
        if task.name not in TASKS:
            raise InvalidRequest(f"model {name!r} has no task API; it takes {task.accepts}")
        return cast("StoredTask[Any]", task)


def _as_column(spec: TensorSpec) -> TensorSpec:
    """Describe an input [n] as [n, 1], which is taken too: perf_analyzer sends no input without a second dimension."""
    return replace(spec, shape=(-1, 1)) if spec.shape == (-1,) and not spec.any_rank else spec


def _properties(model: ServedModel) -> dict[str, str]:
    loaded = model.loaded
    properties = {"batching": loaded.batching.describe()}
    if methods := methods_of(model):
        properties["explain"] = ",".join(methods)
    if loaded.remark is not None:
        properties["remark"] = loaded.remark
    if optional := model.task.optional_inputs:
        properties["optional_inputs"] = ",".join(spec.name for spec in optional)
    return properties
