"""Documents of Triton's extensions: model configuration, statistics, index of the repository; and what is refused.

The documents have Triton's JSON form. Over gRPC they become the messages of the same names, which have the same fields.
"""

from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import msgspec

from service.errors import NotFound, Unsupported
from service.prediction.messages import IndexedVersion, ModelConfiguration
from service.prediction.statistics import Duration, ModelStatistics
from service.tensors import TensorSpec

BACKEND = "onnxruntime"
STREAM = "stream"  # parameter of a request on a stream whose answer is to be sent in pieces

# Why calls and routes are refused that Triton has and this server has not.
STORE_DECIDES = (
    "models cannot be loaded or unloaded by a request: the folders of the store when the server starts decide which"
    " models are served"
)
NO_SHARED_MEMORY = "shared memory is not offered: tensors are sent in requests and answers"
NO_TRACE_SETTING = (
    "trace settings cannot be read or changed by a request: the option --tracing and the variables OTEL_* decide when"
    " the server starts"
)
NO_LOG_SETTINGS = (
    "log settings cannot be read or changed by a request: the option --log-level decides when the server starts"
)
ONE_REPOSITORY = "a repository cannot be chosen: the server has one store; leave repository_name empty"


class ConfigReshape(msgspec.Struct):
    """The shape of a tensor in the model, where it is not `dims`."""

    shape: list[int]


class ConfigTensor(msgspec.Struct, kw_only=True):
    """An input or output in a model's configuration.

    `dims` leaves out the first dimension if `max_batch_size` is not 0; -1 stands for any size. A tensor without further
    dimensions has `dims` [1], which Triton never leaves empty, and an empty `reshape`.
    """

    name: str
    data_type: str
    dims: list[int]
    reshape: ConfigReshape | msgspec.UnsetType = msgspec.UNSET


class ConfigInput(ConfigTensor, kw_only=True):
    """An input in a model's configuration; `format` is FORMAT_NCHW if the axes are known to be those of images."""

    format: Literal["FORMAT_NONE", "FORMAT_NCHW"]


class InstanceGroup(msgspec.Struct):
    """The engine instances of a model."""

    name: str
    kind: str
    count: int


class DynamicBatching(msgspec.Struct):
    """Present if requests share engine calls, which no request waits for: the delay is 0."""

    max_queue_delay_microseconds: int = 0


class TransactionPolicy(msgspec.Struct):
    """Whether the number of answers may differ from the number of requests, without the request asking for it."""

    decoupled: bool = False


class ConfigParameter(msgspec.Struct):
    """A parameter in a model's configuration."""

    string_value: str


class ModelConfig(msgspec.Struct):
    """The configuration of a model.

    If `max_batch_size` is not 0, the first dimension of every tensor is that of the batch, and a request may have so
    many inputs.
    """

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, int]]
    max_batch_size: int
    input: list[ConfigInput]
    output: list[ConfigTensor]
    instance_group: list[InstanceGroup]
    model_transaction_policy: TransactionPolicy
    parameters: dict[str, ConfigParameter]
    dynamic_batching: DynamicBatching | msgspec.UnsetType = msgspec.UNSET


class StatisticDuration(msgspec.Struct):
    """How often something happened, and how many nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct):
    """Requests to a model, and the stages of those that were answered; there is no cache."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration
    cache_miss: StatisticDuration


class BatchStatistics(msgspec.Struct):
    """Engine calls of one size; inputs and outputs are prepared by request, not by batch."""

    batch_size: int
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


class VersionStatistics(msgspec.Struct):
    """Statistics of a model version since the server's start; `last_inference` in milliseconds since 1970, or 0."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class Statistics(msgspec.Struct):
    """Statistics of model versions."""

    model_stats: list[VersionStatistics]


class RepositoryEntry(msgspec.Struct):
    """A model version of the store; `state` is READY, LOADING or UNAVAILABLE, and `reason` says why it is not READY."""

    name: str
    version: str
    state: str
    reason: str


def config_document(model: ModelConfiguration) -> ModelConfig:
    """Return the configuration of a model.

    `max_batch_size` is the number of inputs that a request may have, where the first dimension of every tensor counts
    them, else 0. Clients of Triton need it: perf_analyzer asks for shapes only if it is 0, and adds the first dimension
    itself otherwise. `dims` of a tensor with no other dimension is then `[1]` with an empty `reshape`, as Triton writes
    it: PyTriton's client refuses empty `dims`. An input of such a model may have shape [n] or [n, 1].

    `decoupled` is false even for models that stream, because a request has one answer unless it asks for a stream by
    itself. Clients refuse every other way to call a decoupled model: perf_analyzer without `--async --streaming`.
    """
    is_batched = model.max_batch_size > 0
    parameters = {}
    if model.streams:
        parameters["stream"] = ConfigParameter(
            "a request of ModelStreamInfer with the parameter stream = true has its answer in pieces"
        )
    return ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=BACKEND,
        version_policy={"all": {}},
        max_batch_size=model.max_batch_size,
        input=[_config_input(spec, is_batched) for spec in model.inputs],
        output=[ConfigTensor(**_config_fields(spec, is_batched)) for spec in model.outputs],
        instance_group=[InstanceGroup(model.name, "KIND_GPU" if model.on_gpu else "KIND_CPU", model.instances)],
        model_transaction_policy=TransactionPolicy(),
        parameters=parameters,
        dynamic_batching=DynamicBatching() if model.joins_requests else msgspec.UNSET,
    )


def _config_input(spec: TensorSpec, is_batched: bool) -> ConfigInput:
    # The format names the axes without that of the batch.
    is_nchw = spec.is_nchw and is_batched
    return ConfigInput(**_config_fields(spec, is_batched), format="FORMAT_NCHW" if is_nchw else "FORMAT_NONE")


def _config_fields(spec: TensorSpec, is_batched: bool) -> dict[str, Any]:
    data_type = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    fields: dict[str, Any] = {"name": spec.name, "data_type": data_type, "dims": list(spec.shape)}
    if is_batched:
        fields["dims"] = list(spec.shape[1:]) or [1]
        if len(spec.shape) == 1:
            fields["reshape"] = ConfigReshape([])
    return fields


def statistics_document(models: list[ModelStatistics]) -> Statistics:
    """Return the statistics of model versions."""
    return Statistics([_version_statistics(model) for model in models])


def _version_statistics(model: ModelStatistics) -> VersionStatistics:
    none = StatisticDuration()
    return VersionStatistics(
        name=model.name,
        version=model.version,
        last_inference=0 if model.last_inference_s is None else int(1e3 * model.last_inference_s),
        inference_count=model.inferences,
        execution_count=sum(calls.count for calls in model.calls.values()),
        inference_stats=InferStatistics(
            success=_duration(model.success),
            fail=_duration(model.fail),
            queue=_duration(model.queue),
            compute_input=_duration(model.preprocess),
            compute_infer=_duration(model.compute),
            compute_output=_duration(model.postprocess),
            cache_hit=none,
            cache_miss=none,
        ),
        batch_stats=[
            BatchStatistics(rows, compute_input=none, compute_infer=_duration(calls), compute_output=none)
            for rows, calls in sorted(model.calls.items())
        ],
    )


def _duration(duration: Duration) -> StatisticDuration:
    return StatisticDuration(duration.count, int(1e9 * duration.seconds))


def index_document(versions: list[IndexedVersion], *, ready_only: bool) -> list[RepositoryEntry]:
    """Return the index of the repository; `ready_only` leaves out versions that are not ready."""
    return [
        RepositoryEntry(each.name, each.version, each.state, each.reason or "")
        for each in versions
        if each.state == "READY" or not ready_only
    ]


def check_shared_memory_region(name: str) -> None:
    """Answer whether a region of shared memory exists: there are none.

    Raises:
        NotFound: a name is given.
    """
    if name:
        raise NotFound(f"no region of shared memory has the name {name!r}: the server has none")


def check_not_streamed(parameters: Mapping[str, object]) -> None:
    """Check that a request which has one answer does not ask for pieces of it.

    Raises:
        Unsupported: the parameter `stream` is set.
    """
    if parameters.get(STREAM):
        raise Unsupported(f"parameter {STREAM!r} is offered by ModelStreamInfer over gRPC; this call has one answer")


def refuse(why: str) -> NoReturn:
    """Refuse a call that this server does not offer.

    Raises:
        Unsupported: always.
    """
    raise Unsupported(why)
