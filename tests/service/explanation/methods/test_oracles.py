"""Our explanations beside those of the packages that people know: lime, shap and captum, on the committed models.

Both sides ask the same function. Occlusion is exactly determined, so it has to be equal. LIME and KernelSHAP draw: how
far two of their explanations agree depends on the samples, so the package is compared with itself by another seed, and
ours has to agree with it as well as it does with itself.
"""

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.data.sets.images import load_image_set
from export.data.sets.texts import load_text_set
from export.studies.explained_answers import Answer, ImageAnswer, ImageModel, TextModel
from service.explanation.methods.perturbation import Method, estimate, plan
from tests.conftest import ROOT

# The packages are imported late: they take seconds, also where these tests are left out.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # shap's colours
    pytest.mark.skipif(not os.environ.get("HEED_DATASETS"), reason="HEED_DATASETS is not set: SST-2 and CIFAR-10"),
]

NUM_INPUTS = 50
BLOCK = 2  # patches a side that go together in an image: of 64 features a few hundred samples say too little
N_SAMPLES = {"text": 512, "image": 128}
# The mean rank correlation of ours with the package's must not be lower. Measured, and in brackets that of the package
# with itself by another seed, which is the ceiling: texts 0.764 (0.784) by lime and 0.876 (0.890) by shap, images 0.741
# (0.731) and 0.759 (0.732). All is drawn by fixed seeds; the bars leave 0.04 for other versions of the packages.
BARS = {("text", "lime"): 0.72, ("text", "shap"): 0.83, ("image", "lime"): 0.70, ("image", "shap"): 0.71}
# How much lower than the ceiling; measured were 0.020 at most.
MARGIN = 0.04


class Game(NamedTuple):
    """Features that can be kept or removed, and the probability of the answer for the features that are kept."""

    num_features: int
    n_samples: int
    values: Callable[[NDArray[np.bool_]], NDArray[np.float64]]  # [S, M] to [S]


def game_of(answer: Answer) -> Game:
    """Return the game of an answer; the features of an image are blocks of patches."""
    if not isinstance(answer, ImageAnswer):
        return Game(answer.num_features, N_SAMPLES["text"], lambda kept_SM: answer.values(kept_SM)[:, 0])
    rows, columns = answer.patches.rows // BLOCK, answer.patches.columns // BLOCK

    def values(kept_SM: NDArray[np.bool_]) -> NDArray[np.float64]:
        kept_SRC = kept_SM.reshape(-1, rows, columns).repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
        return answer.values(kept_SRC.reshape(len(kept_SM), -1))[:, 0]

    return Game(rows * columns, N_SAMPLES["image"], values)


def ours(game: Game, method: Method, seed: int = 0) -> NDArray[np.float64]:
    """Return the weights [M] that the service would give."""
    made = plan(method, game.num_features, None if method == "occlusion" else game.n_samples, seed)
    whole_K, empty_K = (game.values(np.full((1, game.num_features), kept)) for kept in (True, False))
    return estimate(method, made, game.values(made.kept_SM)[:, None], whole_K, empty_K)[:, 0]


def limes(game: Game, seed: int) -> NDArray[np.float64]:
    """Return the weights of the package `lime`: its text explainer, on words that stand for the features."""
    from lime.lime_text import LimeTextExplainer

    numbers = [f"w{number}" for number in range(game.num_features)]

    def probabilities(texts: Sequence[str]) -> NDArray[np.float64]:
        kept_SM = np.zeros((len(texts), game.num_features), dtype=np.bool_)
        for row, text in enumerate(texts):
            kept_SM[row, [int(number) for number in re.findall(r"w(\d+)", text)]] = True
        return np.stack([1 - game.values(kept_SM), game.values(kept_SM)], axis=1)

    explainer = LimeTextExplainer(feature_selection="none", split_expression=r"\s+", random_state=seed)
    explained = explainer.explain_instance(
        " ".join(numbers), probabilities, num_features=game.num_features, num_samples=game.n_samples
    )
    weights_M = np.zeros(game.num_features)
    for number, weight in explained.local_exp[1]:
        weights_M[int(explained.domain_mapper.indexed_string.word(number)[1:])] = weight
    return weights_M


def shaps(game: Game, seed: int) -> NDArray[np.float64]:
    """Return the weights of the package `shap`, without its selection of ten features."""
    import shap

    np.random.seed(seed)  # noqa: NPY002, the package draws from there
    explainer = shap.KernelExplainer(lambda kept_SM: game.values(kept_SM > 0.5), np.zeros((1, game.num_features)))
    found: NDArray[np.float64] = explainer.shap_values(
        np.ones((1, game.num_features)), nsamples=game.n_samples, l1_reg=False, silent=True
    )
    return found.ravel()


def ablation(game: Game) -> NDArray[np.float64]:
    """Return the weights of captum's occlusion, one feature at a time."""
    from captum.attr import FeatureAblation

    def values(kept_SM: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(game.values(kept_SM.numpy() > 0.5))

    attribution = FeatureAblation(values).attribute(torch.ones(1, game.num_features), perturbations_per_eval=16)
    return np.asarray(attribution.numpy()[0], dtype=np.float64)


@functools.cache
def images() -> list[NDArray[np.uint8]]:
    """Return images of CIFAR-10's test split, [H, W, C]; reading the data set takes seconds."""
    return list(load_image_set("cifar10").test.pixels_NCHW[:NUM_INPUTS].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module", params=["text", "image"])
def answers(request: pytest.FixtureRequest) -> tuple[str, list[Answer]]:
    """Return games of fifty sentences of SST-2's validation split, or of images of CIFAR-10's test split."""
    if request.param == "text":
        text_model = TextModel(ROOT / "model_store/sentiment-small/1")
        return "text", [text_model.answer(text) for text in load_text_set("sst2").validation.texts[:NUM_INPUTS]]
    image_model = ImageModel(ROOT / "model_store/cifar10-vit/1")
    return "image", [image_model.answer(levels_HWC) for levels_HWC in images()]


def test_occlusion_is_captums(answers: tuple[str, list[Answer]]) -> None:
    """The weights agree feature by feature; each patch of an image is one feature."""
    for answer in answers[1]:
        game = Game(answer.num_features, 0, lambda kept_SM, answer=answer: answer.values(kept_SM)[:, 0])  # type: ignore[misc]
        np.testing.assert_allclose(ours(game, "occlusion"), ablation(game), atol=1e-6)


def test_taken_away_patches_are_captums() -> None:
    """FeatureAblation runs on the pixels, with the grid as feature mask and the mean colour as baseline."""
    from captum.attr import FeatureAblation

    model = ImageModel(ROOT / "model_store/cifar10-vit/1")
    for levels_HWC in images()[:20]:
        answer = model.answer(levels_HWC)
        given_BCHW = torch.from_numpy(answer.row.feeds["pixel_values"][None])
        grid_11HW = torch.arange(64).view(1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)

        def probability(x_BCHW: torch.Tensor, answer: Any = answer) -> torch.Tensor:
            rows = model.logits(list(x_BCHW.numpy()))
            return torch.tensor([model.task.probability(logits_C, answer.target) for logits_C in rows])

        expected = FeatureAblation(probability).attribute(
            given_BCHW,
            baselines=given_BCHW.mean(dim=(2, 3), keepdim=True).expand_as(given_BCHW),
            feature_mask=grid_11HW,
            perturbations_per_eval=32,
        )
        found_M = answer.by_perturbation("occlusion", 0)[:, 0]
        np.testing.assert_allclose(found_M, expected[0, 0, ::4, ::4].flatten().numpy(), atol=1e-5)


@pytest.mark.parametrize("method", ["lime", "shap"])
def test_drawn_explanations_agree_with_the_package_as_it_does_with_itself(
    answers: tuple[str, list[Answer]], method: Method
) -> None:
    """The measure is rank correlation, mean over fifty inputs."""
    from scipy.stats import spearmanr

    oracle = {"lime": limes, "shap": shaps}[method]
    with_the_package, with_itself = [], []
    for answer in answers[1]:
        game = game_of(answer)
        theirs_M = oracle(game, 0)
        with_the_package.append(spearmanr(ours(game, method), theirs_M).statistic)
        with_itself.append(spearmanr(oracle(game, 1), theirs_M).statistic)
    agreement, ceiling = float(np.mean(with_the_package)), float(np.mean(with_itself))
    assert agreement > BARS[answers[0], method], f"{agreement:.4f}, the package with itself {ceiling:.4f}"
    assert agreement > ceiling - MARGIN, f"{agreement:.4f}, the package with itself {ceiling:.4f}"
