"""Statistics of a model version: requests, the time of their stages, and engine calls, since the server's start."""

import time
from dataclasses import dataclass

from service.telemetry.tallies import ModelTotals


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long it took altogether."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a model version has answered and computed.

    Every request counts once, in `success` or in `fail`, as in the metric `heed_requests_total`. Explanations count
    there too, but have no stages.

    Attributes:
        name: name of the model.
        version: version of the model.
        last_inference_s: Unix time at which the last prediction was answered; None before the first.
        inferences: inputs that were answered: texts, images, or rows of tensors.
        success: requests that were answered.
        fail: requests that were not; those that failed before they were decoded add no time.
        queue: wait for an engine, of answered predictions; as for the three that follow.
        preprocess: from inputs to items for the engine.
        compute: engine calls.
        postprocess: from the engine's outputs to the answer.
        calls: engine calls of any kind, by their rows.
    """

    name: str
    version: str
    last_inference_s: float | None
    inferences: int
    success: Duration
    fail: Duration
    queue: Duration
    preprocess: Duration
    compute: Duration
    postprocess: Duration
    calls: dict[int, Duration]


def model_statistics(name: str, version: str, totals: ModelTotals) -> ModelStatistics:
    """Add up the counts of a model version."""
    times = {
        stage: sum(getattr(stages, stage).sum for stages in totals.stages)
        for stage in ("total", "queue", "preprocess", "compute", "postprocess")
    }
    predictions = sum(sum(stages.total.counts) for stages in totals.stages)
    answered = sum(number for (_, outcome), number in totals.requests.items() if outcome == "ok")
    failed = sum(number for (_, outcome), number in totals.requests.items() if outcome != "ok")
    explained_s = sum(explained.seconds.sum for explained in totals.explained)
    last_s = max((stages.last_s for stages in totals.stages), default=0.0)
    return ModelStatistics(
        name=name,
        version=version,
        last_inference_s=time.time() - (time.monotonic() - last_s) if last_s else None,
        inferences=sum(stages.inferences for stages in totals.stages),
        success=Duration(answered, times["total"] + explained_s),
        fail=Duration(failed, totals.failed_s),
        queue=Duration(predictions, times["queue"]),
        preprocess=Duration(predictions, times["preprocess"]),
        compute=Duration(predictions, times["compute"]),
        postprocess=Duration(predictions, times["postprocess"]),
        calls={rows: Duration(number, totals.batches.seconds[rows]) for rows, number in totals.batches.calls.items()},
    )
