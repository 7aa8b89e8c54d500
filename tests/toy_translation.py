"""A translation task that is learned in seconds: counted dogs."""

import numpy as np
import torch

from export.conversion.translation_source import TranslationSource
from export.data.translation import ParallelTexts, TranslationData
from export.networks.transformer import NEGATIVE
from export.networks.translation import EOS_ID, TranslationConfig, TranslationTransformer
from export.training.translation import TranslationTrainConfig

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "red": "rote", "blue": "blaue", "dogs": "Hunde", "and": "und"}


def toy_pairs(count: int, seed: int) -> ParallelTexts:
    """Make pairs that translate word by word with the last word first, so that order must be learned."""
    rng = np.random.default_rng(seed)
    sources = [[*rng.choice(list(WORDS), size=rng.integers(1, 6))] for _ in range(count)]
    targets = [[WORDS[words[-1]], *(WORDS[word] for word in words[:-1])] for words in sources]
    return ParallelTexts([" ".join(words) for words in sources], [" ".join(words) for words in targets])


def toy_data() -> TranslationData:
    """Make the data of counted dogs."""
    return TranslationData(
        "dogs", "none", "en", "de", toy_pairs(3000, 1), toy_pairs(200, 2), {"dogs": toy_pairs(60, 3)}
    )


def toy_config(**changes: object) -> TranslationTrainConfig:
    """Make a configuration that trains for seconds."""
    model = TranslationConfig(
        vocab_size=300,
        d_model=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        d_ff=64,
        dropout=0.0,
        max_tokens=64,
        activation="relu",
    )
    values = {"epochs": 10, "learning_rate": 1e-2, "batch_tokens": 300, "ema_decay": 0.9, "model": model}
    return TranslationTrainConfig(**(values | {"vocab_size": 300, "subword_dropout": 0.0} | changes))  # type: ignore[arg-type]


def endless_source(tokenizer_json: str) -> TranslationSource:
    """Make a model with random weights that never ends a sentence."""
    torch.manual_seed(6)
    config = TranslationConfig(
        vocab_size=300, d_model=32, num_layers=1, num_decoder_layers=1, num_heads=4, d_ff=64, max_tokens=4000
    )
    network = TranslationTransformer(config).eval()
    network.never_V[EOS_ID] = NEGATIVE
    return TranslationSource(module=network, tokenizer_json=tokenizer_json, source_language="en", target_language="de")
