"""Saved models: what is folded into the head, large weights, shards."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from export.training.fine_tuning import saved_model
from export.training.fine_tuning.saved_model import fold_scale, fold_temperature, load_model, save_model
from export.training.fine_tuning.settings import FAMILIES
from export.training.fine_tuning.starting_point import starting_point
from tests.export.training.fine_tuning.conftest import config_of, data_of, save_encoder

INPUTS = {"input_ids": torch.tensor([[1, 7, 8, 9, 2]]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}


@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_and_scale_are_folded_into_the_head(family: str, tmp_path: Path) -> None:
    """Logits of every family are divided, or scaled and shifted, exactly."""
    folder = save_encoder(family, tmp_path / "encoder")
    model = starting_point(data_of("single_label_classification"), config_of(start_from=str(folder))).model.eval()
    with torch.inference_mode():
        before = model(**INPUTS).logits
    fold_temperature(model, 2.5)
    with torch.inference_mode():
        torch.testing.assert_close(model(**INPUTS).logits, before / 2.5)
    fold_scale(model, 100.0, 7.0)
    with torch.inference_mode():
        torch.testing.assert_close(model(**INPUTS).logits, before / 2.5 * 7.0 + 100.0)


def test_numbers_beyond_half_precision_are_kept(tmp_path: Path) -> None:
    """Prices of a million are answered as exactly as float32 can, although other weights are stored in float16."""
    start = starting_point(data_of("regression"), config_of())
    fold_scale(start.model, 1_234_567.0, 250_000.0)
    with torch.inference_mode():
        expected = start.model.eval()(**INPUTS).logits
    save_model(start.model, start.tokenizer, tmp_path / "saved", {"problem": "regression"})
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**INPUTS).logits, expected, rtol=1e-3, atol=0)
    assert loaded.classifier.bias.item() == start.model.classifier.bias.item() > 65504


def test_large_weights_lie_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard is above the limit, and `transformers` reads them as one model."""
    monkeypatch.setattr(saved_model, "MAX_FILE_BYTES", 20_000)
    start = starting_point(data_of("single_label_classification"), config_of())
    save_model(start.model, start.tokenizer, tmp_path / "saved", {})
    shards = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    model, _ = load_model(tmp_path / "saved")
    for name, weight in start.model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], weight, rtol=1e-3, atol=1e-6)


def test_a_network_without_a_known_head_is_refused() -> None:
    """Only heads that are known to be the last linear map can hold a temperature."""
    model = starting_point(data_of("single_label_classification"), config_of()).model
    model.classifier = torch.nn.Identity()
    with pytest.raises(ValueError, match="a bert has no linear head"):
        fold_temperature(model, 2.0)
