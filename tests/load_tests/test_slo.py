"""slo.toml is read strictly, so that a typing error never passes as a kept limit."""

from pathlib import Path

import pytest

from load_tests.judging import limits_of
from load_tests.model_tasks import TASKS
from load_tests.slo import chosen, read_slo
from load_tests.store import models_of, task_of
from tests.conftest import ROOT

COURSE = """
[ci]
warm_up_s = 1.0
arrivals = {rate_per_s = 10.0, seconds = 1.0, max_in_flight = 4}
steps = {users = [2, 4], settle_s = 0.0, seconds = 1.0, judged_users = 2}
tolerance = {latency_share = 0.5, latency_ms = 10.0, throughput_share = 0.25, quality_share = 0.02}
[ci.models.any]
task = "text-classification"
"""


def written(folder: Path, text: str) -> Path:
    """Write a file of limits."""
    path = folder / "slo.toml"
    path.write_text(text)
    return path


def test_the_committed_gate_has_every_task_of_the_store_with_all_its_limits() -> None:
    """`make load` and `make load-ci` limit latency, refusals and quality of each task."""
    slo = read_slo(ROOT / "load_tests/slo.toml")
    store = ROOT / "model_store"
    committed = {task_of(store, model.name).name for model in models_of(store)}
    assert slo.ci
    for models in (slo.models, slo.ci.models):
        assert {limits.task for limits in models.values()} == committed
        for limits in models.values():
            assert limits.max_p95_ms
            assert limits.max_p99_ms
            assert limits.max_refused_share is not None
            assert f"min_{TASKS[limits.task].measures[0]}" in limits_of(limits)
    assert slo.ci.steps.judged_users in slo.ci.steps.users


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("[ci]", "[any]\ntask = 'translation'\nmax_p95 = 1.0\n[ci]", r"[any] Object contains unknown field `max_p95`"),
        ("[ci]", "[any]\nmax_p95_ms = 1.0\n[ci]", "missing required field `task`"),
        ("text-classification", "text", "Invalid enum value 'text' - at `$.models[...].task`"),
        ("rate_per_s = 10.0", "rate_per_s = 0", "`$.arrivals.rate_per_s`"),
        ("seconds = 1.0, max", "second = 1.0, max", "unknown field `second` - at `$.arrivals`"),
        ("users = [2, 4]", "users = [4, 2]", "[ci.steps] users must grow from step to step, not [4, 2]"),
        ("users = [2, 4]", "users = [1]", "`$.steps.users[0]`"),
        ("judged_users = 2", "judged_users = 1", "[ci.steps] judged_users must be at least users[0] = 2"),
        ("[ci.models.any]", "[ci.models.any", "slo.toml: "),
    ],
)
def test_unknown_and_invalid_fields_are_refused(before: str, after: str, named: str, tmp_path: Path) -> None:
    """The error names the file and the field."""
    assert before in COURSE
    with pytest.raises(ValueError, match="slo.toml") as refused:
        read_slo(written(tmp_path, COURSE.replace(before, after, 1)))
    assert named in str(refused.value)


def test_models_are_chosen_by_name(tmp_path: Path) -> None:
    """A model without a table is refused."""
    path = written(tmp_path, COURSE)
    gate = read_slo(path).ci
    assert gate
    assert chosen(gate.models, None, path) == chosen(gate.models, ["any"], path) == gate.models
    with pytest.raises(ValueError, match="has no table of limits for other; it has: any"):
        chosen(gate.models, ["other"], path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A missing file is an error and not a gate without limits."""
    with pytest.raises(ValueError, match=r"nowhere\.toml: No such file"):
        read_slo(tmp_path / "nowhere.toml")
