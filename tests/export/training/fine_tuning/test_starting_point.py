"""Starting points of fine-tuning: every family, and folders that are refused."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from export.training.fine_tuning.run import fine_tune
from export.training.fine_tuning.saved_model import HUGGING_FACE, load_model
from export.training.fine_tuning.settings import FAMILIES
from export.training.fine_tuning.starting_point import starting_point
from tests.export.training.fine_tuning.conftest import config_of, data_of, save_encoder
from tests.export.training.fine_tuning.test_run import answers_of_transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_and_saved_for_transformers(family: str, tmp_path: Path) -> None:
    """One epoch on pairs changes the encoder; the saved folder answers in `transformers` as it does here."""
    folder = save_encoder(family, tmp_path / "encoder")
    data = data_of("single_label_classification", pairs=True, num_rows=180)
    config = config_of(start_from=str(folder), epochs=1, layer_decay=0.9)
    start = starting_point(data, config)
    assert start.max_tokens == 48
    before = start.model.state_dict()
    fine_tune(data, config, tmp_path / "run", Console(quiet=True))
    model, tokenizer = load_model(tmp_path / "run" / HUGGING_FACE)
    changed = [
        name
        for name, weight in model.model.state_dict().items()
        if not torch.equal(weight, before[name].half().float())
    ]
    assert [name for name in changed if "embeddings" in name], changed
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["network"], tokenizer.model_max_length) == (family, 48)
    assert data.test is not None
    predicted = answers_of_transformers(tmp_path / "run", data).argmax(1)
    assert result["quality"]["accuracy"] == pytest.approx((predicted == data.test.labels).mean())


def test_the_head_is_new_and_the_encoder_is_not(tmp_path: Path) -> None:
    """Weights of the folder are taken, labels of the data replace those of the folder, positions bound the length."""
    folder = save_encoder("roberta", tmp_path / "encoder")
    data = data_of("multi_label_classification")
    start = starting_point(data, config_of(start_from=str(folder), max_tokens=500))
    assert start.max_tokens == 69  # 70 positions, of which those up to the padding id are not used
    assert start.model.config.num_labels == 3
    assert start.model.config.id2label[2] == "never"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("no folder", "has no config.json: --start-from takes minilm, scratch or a folder; there are .*encoder"),
        ("other family", "model type 't5' is not one of albert, bert, "),
        ("its own code", "auto_map names code"),
        ("no JSON", "is not JSON"),
        ("fewer layers", "lacks 16 weights of the encoder that config.json describes"),
        ("no weights", "cannot be loaded"),
        ("small vocabulary", "the tokenizer has .* pieces, the network embeds 10"),
    ],
)
def test_a_folder_that_is_no_encoder_is_refused_in_a_sentence(damage: str, expected: str, tmp_path: Path) -> None:
    """The message names the folder, what was found and what is taken."""
    folder = save_encoder("bert", tmp_path / "encoder", vocab_size=10 if damage == "small vocabulary" else 0)
    config = json.loads((folder / "config.json").read_text())
    changes: dict[str, dict[str, object]] = {
        "other family": {"model_type": "t5"},
        "its own code": {"auto_map": {"AutoModel": "mine.Model"}},
        "fewer layers": {"num_hidden_layers": 3},
    }
    (folder / "config.json").write_text("{" if damage == "no JSON" else json.dumps(config | changes.get(damage, {})))
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    given = tmp_path / "encodr" if damage == "no folder" else folder
    with pytest.raises(ValueError, match=expected) as raised:
        starting_point(data_of("single_label_classification"), config_of(start_from=str(given)))
    assert "\n" not in str(raised.value)
