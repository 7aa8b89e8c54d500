"""Logits become answers for each kind of problem."""

import numpy as np
import pytest

from service.tasks.classification import Classifier, ClassifierSettings
from service.tasks.stored_task import TaskError
from service.tasks.task import AnswerOptions

LOGITS = np.array([0.0, 2.0, -2.0], np.float32)
SIGMOIDS = [0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))]


def several(thresholds: list[float] | None = None) -> Classifier:
    """Make a multi-label classifier."""
    return Classifier(["a", "b", "c"], ClassifierSettings("multi_label_classification", thresholds=thresholds))


def test_each_of_several_labels_has_a_score_of_its_own() -> None:
    """The scores do not sum to 1; a request may ask for others."""
    answer = several().finish(LOGITS)
    assert (answer.labels, answer.predicted) == (["b", "a", "c"], None)
    assert answer.scores == pytest.approx([SIGMOIDS[1], SIGMOIDS[0], SIGMOIDS[2]])
    assert sum(several().finish(LOGITS, AnswerOptions("softmax")).scores) == pytest.approx(1)


def test_thresholds_say_which_labels_are_predicted() -> None:
    """Whatever scores the request asks for: the thresholds were fitted on the model's own."""
    task = several([0.5, 0.9, 0.1])
    for options in (AnswerOptions(), AnswerOptions("none")):
        answer = task.finish(LOGITS, options)
        assert dict(zip(answer.labels, answer.predicted or [], strict=True)) == {"a": True, "b": False, "c": True}
    document = task.hub_document(task.finish(LOGITS))
    assert [each["predicted"] for each in document] == [False, True, True]
    tensors = task.to_tensors([LOGITS, -LOGITS])
    assert tensors["predicted"].tolist() == [[True, False, True], [True, False, True]]
    assert {spec.name for spec in task.outputs} == tensors.keys()
    with pytest.raises(TaskError, match=r"2 thresholds in task\.json for 3 labels"):
        several([0.5, 0.5])


def test_numbers_are_answered_as_they_are() -> None:
    """A regression has no label that is best."""
    task = Classifier(["stars"], ClassifierSettings("regression"))
    assert task.finish(LOGITS[1:2]).scores == [2.0]
    tensors = task.to_tensors([LOGITS[1:2], LOGITS[2:]])
    assert tensors["values"].tolist() == [[2.0], [-2.0]]
    assert {spec.name for spec in task.outputs} == tensors.keys()


def test_settings_may_name_the_function() -> None:
    """As where a single logit is a score between 0 and 1."""
    task = Classifier(["stars"], ClassifierSettings("regression", function="sigmoid"))
    assert task.finish(LOGITS[:1]).scores == [0.5]
