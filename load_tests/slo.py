"""The contents of slo.toml: the limits of each model, and the course of a gate run.

An unknown name is refused, so that a typing error never passes as a kept limit.
"""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from load_tests.model_tasks import MEASURES, TASKS

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class CommonLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Limits of one model under load, without those of quality. None: no limit."""

    task: str
    max_p95_ms: float | None = None
    max_p99_ms: float | None = None
    max_refused_share: float | None = None  # of all requests: refused, failed, not answered in time or not started
    min_requests_per_s: float | None = None


QUALITY = tuple(f"min_{measure}" for measure in MEASURES)
if TYPE_CHECKING:
    Limits = CommonLimits
else:  # the names come from the table of tasks
    Limits = msgspec.defstruct(
        "Limits",
        [("task", Literal[*TASKS]), *((name, float | None, None) for name in QUALITY)],
        bases=(CommonLimits,),
        frozen=True,
        forbid_unknown_fields=True,
        kw_only=True,
        omit_defaults=True,
    )


class Arrivals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Requests that start on schedule, whether or not earlier ones were answered."""

    rate_per_s: Positive
    seconds: Positive
    max_in_flight: Count  # a request that is due while so many are unanswered is not started, and counts as refused


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Closed-loop users, more of them at each step."""

    users: Annotated[list[Annotated[int, msgspec.Meta(ge=2)]], msgspec.Meta(min_length=1)]
    settle_s: Annotated[float, msgspec.Meta(ge=0)]  # at the begin of each step, not measured
    seconds: Positive  # of each step, measured
    judged_users: Count  # limits of latency apply to steps with at most this many users


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much worse than in the run before a figure may be without being marked."""

    latency_share: Positive
    latency_ms: Positive  # a change of latency is marked if it exceeds both
    throughput_share: Positive
    quality_share: Positive


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The course of `make load-ci`, and its limits."""

    warm_up_s: Positive
    min_knee_requests_per_s: float | None = None
    arrivals: Arrivals
    steps: Steps
    tolerance: Tolerance
    models: Annotated[dict[str, Limits], msgspec.Meta(min_length=1)]


class Slo(msgspec.Struct, frozen=True):
    """The whole file."""

    models: dict[str, Limits]  # of `make load`
    ci: Gate | None


def read_slo(path: Path) -> Slo:
    """Read and check the file.

    Raises:
        ValueError: the file is missing, no TOML, or a field is unknown or wrong; names the file and the field.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
        gate = document.pop("ci", None)
        models = {name: convert(table, Limits, f"[{name}]") for name, table in document.items()}
        slo = Slo(models, None if gate is None else convert(gate, Gate, "[ci]"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if slo.ci:
        users = slo.ci.steps.users
        if users != sorted(set(users)):
            raise ValueError(f"{path}: [ci.steps] users must grow from step to step, not {users}")
        if slo.ci.steps.judged_users < users[0]:
            raise ValueError(f"{path}: [ci.steps] judged_users must be at least users[0] = {users[0]}")
    return slo


def convert(table: Any, kind: Any, where: str) -> Any:
    """Convert a table to a struct.

    Raises:
        ValueError: names the table and the field.
    """
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where} {error}") from error


def chosen(models: dict[str, Limits], names: list[str] | None, path: Path) -> dict[str, Limits]:
    """Return the models with these names, or all.

    Raises:
        ValueError: one has no table.
    """
    if unknown := [name for name in names or [] if name not in models]:
        raise ValueError(f"{path} has no table of limits for {unknown[0]}; it has: {', '.join(models)}")
    return {name: models[name] for name in names} if names else models
