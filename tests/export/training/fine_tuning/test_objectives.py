"""Targets, weights and scores of the three problems."""

import dataclasses

import numpy as np
import pytest
import torch

from export.training.fine_tuning.objectives import MAX_PRESENCE_WEIGHT, Regression, objective_of
from tests.export.training.fine_tuning.conftest import config_of, data_of

CPU = torch.device("cpu")


def test_balanced_classes_weigh_inversely_to_their_frequency() -> None:
    """Three of four rows have class 0: a mistake on class 1 costs three times as much; without weights, the same."""
    data = data_of("single_label_classification")
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=[0, 0, 0, 1]))
    targets, logits_BC = torch.tensor([0, 1]), torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    for weights, ratio in (("none", 1.0), ("balanced", 3.0)):
        objective = objective_of(data, config_of(class_weights=weights), CPU)
        # torch divides by the weights of the targets, so compare the two rows within one mean
        whole, second = (
            objective.loss(logits_BC, targets),
            objective.loss(logits_BC * torch.tensor([[0.0], [1.0]]), targets),
        )
        lost_by_first = float(whole - second)
        lost_by_second = float(whole - objective.loss(logits_BC * torch.tensor([[1.0], [0.0]]), targets))
        assert lost_by_second / lost_by_first == pytest.approx(ratio)


def test_balanced_classes_are_judged_by_f1() -> None:
    """A classifier that always answers the frequent class scores 3/4 by accuracy, and less by F1."""
    data = data_of("single_label_classification")
    logits_NC = np.array([[1.0, 0.0]] * 4, dtype=np.float32)
    scores = {
        weights: objective_of(data, config_of(class_weights=weights), CPU).score(logits_NC, [0, 0, 0, 1])["score"]
        for weights in ("none", "balanced")
    }
    assert scores == {"none": 0.75, "balanced": pytest.approx(3 / 7)}


def test_several_labels_have_one_loss_each() -> None:
    """Targets are sets; a rare label's presence weighs more, up to a limit; a perfect order has score 1."""
    data = data_of("multi_label_classification")
    rare = [[0], *([[]] * 999)]
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=rare))
    plain, balanced = (objective_of(data, config_of(class_weights=each), CPU) for each in ("none", "balanced"))
    targets = plain.targets([[0, 2], []])
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    present = torch.zeros(1, 3), plain.targets([[0]])
    ratio = (balanced.loss(*present) * 3 - 2 * np.log(2)) / np.log(2)
    assert float(ratio) == pytest.approx(MAX_PRESENCE_WEIGHT)
    logits_NC = np.array([[2, -1, 1], [-1, -2, -3]], dtype=np.float32)
    assert plain.score(logits_NC, [[0, 2], []]) == {"score": 1.0, "f1_at_half": 1.0}
    assert plain.score(logits_NC, [[], []])["score"] == 0.0
    assert plain.correct(torch.from_numpy(logits_NC), targets).all()


def test_a_regression_scores_in_the_unit_of_its_labels() -> None:
    """Targets are standardised; predicting their mean explains nothing, predicting them exactly explains all."""
    objective = Regression([10.0, 20.0, 30.0])
    targets = objective.targets([10.0, 20.0, 30.0])
    assert float(targets.mean()) == pytest.approx(0)
    assert float(targets.std(unbiased=False)) == pytest.approx(1)
    right_NC = targets.numpy()[:, None]
    assert objective.score(right_NC, [10.0, 20.0, 30.0]) == {
        "score": pytest.approx(1),
        "mean_absolute_error": pytest.approx(0, abs=1e-5),
    }
    assert objective.score(0 * right_NC, [10.0, 20.0, 30.0])["score"] == pytest.approx(0)
    assert Regression([5.0, 5.0]).scale == 1.0  # equal targets leave nothing to learn, and divide nothing by 0
