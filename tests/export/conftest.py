"""A tiny trained model that the tests of conversion share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from export.conversion.golden_texts import made_up_sentences
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.networks.transformer import EncoderConfig
from export.training.text_classifier import train_text_classifier
from export.training.text_recipes import TextTrainConfig
from tests.conftest import made_once

NUM_THREADS = torch.get_num_threads()  # before any test changes it
GOOD = {"wonderful", "moving", "funny", "clever", "rich"}


def toy_data() -> TextClassificationData:
    """Make sentences that are positive when more of their words are good than bad."""
    texts = [text for text in made_up_sentences(2400, seed=7) if label_of(text) is not None]
    labels = [label_of(text) or 0 for text in texts]
    cut = len(texts) - 600
    names = ["NEGATIVE", "POSITIVE"]
    return TextClassificationData(
        "toy", names, LabelledTexts(texts[:cut], labels[:cut]), LabelledTexts(texts[cut:], labels[cut:])
    )


def label_of(text: str) -> int | None:
    """Return 1 for a positive sentence, 0 for a negative one, and None for a tie."""
    words = text.replace(",", " ").replace(".", " ").replace("!", " ").split()
    good = sum(word in GOOD for word in words)
    bad = sum(word in {"dull", "clumsy", "pointless", "forgettable", "cold"} for word in words)
    return None if good == bad else int(good > bad)


def toy_config(**changes: object) -> TextTrainConfig:
    """Settings that train within seconds."""
    model = EncoderConfig(vocab_size=400, num_labels=2, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_tokens=128)
    values: dict[str, object] = {
        "epochs": 3,
        "learning_rate": 3e-3,
        "token_dropout": 0.0,
        "vocab_size": 400,
        "ema_decay": 0.9,
        "model": model,
    }
    return TextTrainConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """Restore torch's number of threads after each test, because the weights of a training run depend on it."""
    torch.set_num_threads(NUM_THREADS)
    yield
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(scope="session")
def quiet() -> Console:
    """A console that shows nothing."""
    return Console(quiet=True)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    """A finished run."""

    def train(run_dir: Path) -> None:
        train_text_classifier(toy_data(), toy_config(), run_dir, quiet)

    return made_once(tmp_path_factory, "toy", train)
