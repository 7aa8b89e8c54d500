"""The table of tasks: the one place in the load tests that names a task."""

import ast

import pytest

from load_tests.model_tasks import MEASURES, TASKS, AnswerPair, ModelTask
from load_tests.wire import Answer
from proto import heed_pb2
from tests.conftest import ROOT


def test_no_other_module_of_the_load_tests_names_a_task() -> None:
    """A string equal to the name of a task stands in the table alone, so a new task changes one module."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "load_tests").rglob("*.py"))
        if ROOT / "load_tests/model_tasks" not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in TASKS
    ]
    assert found == []


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_material_and_the_measures_that_it_names(
    task: ModelTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without data sets too: each input has a body, a soak has inputs, and right answers reach the best value."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)
    fresh = type(task)()
    assert fresh.body(fresh.inputs[0])
    assert len(fresh.soak_inputs(8)) >= 2
    assert fresh.bad_requests("any")
    assert tuple(fresh.quality([AnswerPair("A dog sleeps.", "A dog sleeps.")])) == task.measures
    assert set(task.measures) <= set(MEASURES)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_typed_requests_of_a_soak_are_read_back(task: ModelTask) -> None:
    """The reader of a typed request takes the reply of its call, streamed or not."""
    replies = {
        "ClassifyText": heed_pb2.ClassifyTextResponse(label="A", score=0.5),
        "ClassifyImage": heed_pb2.ClassifyImageResponse(label="A", score=0.5),
        "Translate": heed_pb2.TranslateResponse(translation="A", score=0.5),
        "TranslateStream": [
            heed_pb2.TranslateChunk(text="A"),
            heed_pb2.TranslateChunk(whole=heed_pb2.TranslateResponse(translation="A", score=0.5)),
        ],
    }
    for sent in task.soak_inputs(8):
        request = task.soak_typed_request("any", sent)
        if task.typed_call is None:
            assert request["call"] == "ModelInfer"
            continue
        assert request["read"](replies[request["call"]]) == Answer(("A",), (0.5,))
