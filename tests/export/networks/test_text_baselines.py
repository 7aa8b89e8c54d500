"""The baselines' answers do not depend on padding, and the shared loop trains them."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from export.networks.text_baselines import BiLstmClassifier, BiLstmConfig, KimCnnClassifier, KimCnnConfig
from export.training.text_classifier import load_run_model, train_text_classifier
from tests.export.conftest import toy_config, toy_data

CONFIGS = [BiLstmConfig(vocab_size=50, num_labels=3), KimCnnConfig(vocab_size=50, num_labels=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["bilstm", "cnn"])
def test_a_row_alone_and_in_a_batch_has_equal_logits(config: BiLstmConfig | KimCnnConfig) -> None:
    """Rows of 1 to 9 tokens, some shorter than a filter, are padded with ids that must not be seen."""
    torch.manual_seed(1)
    model: nn.Module = BiLstmClassifier(config) if isinstance(config, BiLstmConfig) else KimCnnClassifier(config)
    model.eval()
    lengths = [9, 1, 4, 2, 7]
    ids_BT = torch.randint(1, 50, (len(lengths), 9))
    mask_BT = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    with torch.inference_mode():
        together_BC = model(ids_BT, mask_BT)
        for row, length in enumerate(lengths):
            alone_1C = model(ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length])
            torch.testing.assert_close(together_BC[row : row + 1], alone_1C, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["bilstm", "cnn"])
def test_baselines_are_trained_like_the_transformer(
    config: BiLstmConfig | KimCnnConfig, tmp_path: Path, quiet: Console
) -> None:
    """The shared loop trains a baseline, writes the shared record, and the weights load again."""
    assert train_text_classifier(toy_data(), toy_config(model=config), tmp_path / "run", quiet)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["quality"]["accuracy"] > 0.85
    assert type(load_run_model(tmp_path / "run").config) is type(config)
