"""Exported translation graphs equal the network, token by token and in whole translations."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from export.networks.translation import BOS_ID, EOS_ID, TranslationConfig, TranslationTransformer
from export.onnx_graphs.translation import OnnxTranslator, export_decoder_step, export_encoder
from export.training.translation import TorchTranslator, translate
from service.tasks.decoding.search import SearchOptions


def random_network(norm_position: str) -> TranslationTransformer:
    """Build a small network with weights that make different tokens likely."""
    torch.manual_seed(11)
    config = TranslationConfig(
        vocab_size=60,
        d_model=32,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        d_ff=64,
        max_tokens=40,
        norm_position=norm_position,  # type: ignore[arg-type]
    )
    network = TranslationTransformer(config).eval()
    for weight in network.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return network


@pytest.fixture(scope="module", params=["pre", "post"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchTranslator, Path]:
    """Return the network, and the folder with its graphs."""
    folder, network = tmp_path_factory.mktemp("graphs"), random_network(request.param)
    export_encoder(network, folder / "encoder.onnx")
    export_decoder_step(network, folder / "model.onnx")
    return TorchTranslator(network, torch.device("cpu")), folder


def sources(count: int) -> list[list[int]]:
    """Sentences of 1 to 15 tokens."""
    rng = np.random.default_rng(2)
    return [[*rng.integers(EOS_ID + 1, 60, rng.integers(0, 15)).tolist(), EOS_ID] for _ in range(count)]


def test_steps_equal_the_network(both: tuple[TorchTranslator, Path]) -> None:
    """Padded sentences in one batch get the same likeliest tokens with equal log probabilities, step after step."""
    network, graphs = both[0], OnnxTranslator(both[1])
    expected_state, state = network.begin(sources(5)), graphs.begin(sources(5))
    last = [BOS_ID] * 5
    for _ in range(12):
        expected, expected_ids, expected_state = network.next_tokens(last, expected_state, 6)
        actual, actual_ids, state = graphs.next_tokens(last, state, 6)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
        np.testing.assert_array_equal(actual_ids, expected_ids)
        last = expected_ids[:, 1].tolist()


@pytest.mark.parametrize("num_beams", [1, 4])
def test_translations_equal_the_network(both: tuple[TorchTranslator, Path], num_beams: int) -> None:
    """Greedy and beam search find the same tokens, alone and in a batch."""
    options = [SearchOptions(max_new_tokens=12, num_beams=num_beams)] * 20
    expected = translate(both[0], sources(20), options)
    for batch_size in (20, 1):
        found = translate(OnnxTranslator(both[1]), sources(20), options, batch_size)
        assert [hypothesis.ids for hypothesis in found] == [hypothesis.ids for hypothesis in expected]
        np.testing.assert_allclose(
            [hypothesis.score for hypothesis in found], [hypothesis.score for hypothesis in expected], atol=1e-5
        )
    assert len(set(itertools.chain.from_iterable(hypothesis.ids for hypothesis in expected))) > 5
