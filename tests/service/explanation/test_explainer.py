"""Explanations, with an engine that the tests hold: how many run at once, how they end, what their weights sum to."""

import asyncio
from pathlib import Path

import pytest

from service.app import App
from service.errors import InvalidRequest, Overloaded
from service.explanation.messages import Explanation
from service.prediction.messages import ExplainRequest
from service.tasks.text.classification import TextClassification
from service.tensors import bytes_array
from tests.service.held_engine import held_app, request

TEXT = "A wonderful film, and not one dull minute."


async def explain(app: App, asked: ExplainRequest, text: str = TEXT) -> Explanation:
    """Explain the answer to a text."""
    explained, _ = await app.predictor.explain(request(), {"text": bytes_array([text.encode()])}, asked)
    return explained.explanation


async def test_the_weights_of_shap_sum_to_the_difference_that_all_words_make(tmp_path: Path) -> None:
    """The gap is what the fidelity reports; the same seed gives the same weights."""
    async with held_app(tmp_path) as (app, _):
        explanation = await explain(app, ExplainRequest("shap", seed=3))
        again = await explain(app, ExplainRequest("shap", seed=3))
        (answer,), _ = await app.predictor.answer(request(), TextClassification, [TEXT])
    assert explanation.fidelity.completeness_gap == pytest.approx(0, abs=1e-6)
    assert explanation.weights == pytest.approx(again.weights, abs=1e-6)
    assert explanation.target == answer.labels[0]
    assert explanation.score == pytest.approx(answer.scores[0], abs=1e-5)
    assert " ".join(word.text for word in explanation.words) == "A wonderful film , and not one dull minute ."


async def test_the_opposite_class_has_the_opposite_weights(tmp_path: Path) -> None:
    """The probabilities of two classes sum to one."""
    async with held_app(tmp_path) as (app, _):
        labels = app.repository.get("sentiment-small").task.labels
        weights = [(await explain(app, ExplainRequest("occlusion", target=label))).weights for label in labels]
        with pytest.raises(InvalidRequest, match="target 'neutral' is not a class"):
            await explain(app, ExplainRequest(target="neutral"))
    assert weights[0] == pytest.approx([-weight for weight in weights[1]], abs=1e-6)


async def test_explanations_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    """The limit follows from the queue; the place of a cancelled explanation is free again."""
    async with held_app(tmp_path, max_queue=16, max_request_rows=16) as (app, engine):
        engine.held = True
        running = asyncio.create_task(explain(app, ExplainRequest("occlusion")))
        await engine.next_call()
        with pytest.raises(Overloaded, match="1 explanations are being computed, the limit is 1"):
            await explain(app, ExplainRequest("occlusion"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        engine.held = False
        engine.release()
        assert (await explain(app, ExplainRequest("occlusion"))).weights


async def test_a_prediction_is_computed_before_the_rest_of_an_explanation(tmp_path: Path) -> None:
    """The explanation goes on afterwards."""
    async with held_app(tmp_path) as (app, engine):
        engine.held = True
        explaining = asyncio.create_task(explain(app, ExplainRequest("shap")))
        await engine.next_call()
        predicting = asyncio.create_task(app.predictor.answer(request(), TextClassification, [TEXT] * 2))
        await asyncio.sleep(0)
        engine.release()
        while not predicting.done():
            engine.release()
            await asyncio.sleep(0)
        assert not explaining.done()
        engine.held = False
        engine.release(1000)
        assert (await explaining).fidelity.evaluations > 2
