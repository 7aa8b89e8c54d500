"""Small data sets of each problem, and small random encoders of each family."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from export.conversion.golden_texts import made_up_sentences
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.data.tokenizers import train_pair_tokenizer
from export.training.fine_tuning.settings import EncoderShape, FineTuneConfig
from tests.export.conftest import label_of

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
# What a family calls its sizes, where it has names of its own.
OWN_SIZES = {
    "albert": SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    "electra": SIZES | {"embedding_size": 32},
    "mobilebert": SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
}


def data_of(problem: str, *, pairs: bool = False, num_rows: int = 240) -> TextClassificationData:
    """Make texts whose labels follow from their words; a test split of 60 and a validation split of 60 are left out."""
    texts = [text for text in made_up_sentences(num_rows * 3, seed=7) if label_of(text) is not None][:num_rows]
    assert len(texts) == num_rows
    positive = [label_of(text) or 0 for text in texts]
    names, labels = ["bad", "good"], list[object](positive)
    if problem == "multi_label_classification":
        names = ["good", "long", "never"]
        labels = [
            [*([0] if good else []), *([1] if len(text) > 60 else [])]
            for good, text in zip(positive, texts, strict=True)
        ]
    elif problem == "regression":
        names, labels = ["stars"], [100.0 + 50.0 * good for good in positive]
    seconds = [f"text number {number % 7}" for number in range(num_rows)] if pairs else None

    def part(first: int, last: int) -> LabelledTexts:
        return LabelledTexts(texts[first:last], labels[first:last], seconds[first:last] if seconds else None)

    cut = num_rows - 120
    document = {"format": 1, "splits": {"test": {"rows": 60}}}
    return TextClassificationData(
        "toy.csv", names, part(0, cut), part(cut, cut + 60), problem, part(cut + 60, num_rows), document
    )


def config_of(**changes: object) -> FineTuneConfig:
    """Settings that train within seconds."""
    values: dict[str, object] = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "max_tokens": 48,
        "model": EncoderShape(d_model=32, num_layers=1, d_ff=64, vocab_size=400, dropout=0.1),
    }
    return FineTuneConfig(**(values | changes))  # type: ignore[arg-type]


def save_encoder(family: str, folder: Path, vocab_size: int = 0) -> Path:
    """Save a random encoder of a family, without a head, and its tokenizer; `vocab_size` 0 fits the tokenizer."""
    tokenizer = train_pair_tokenizer(made_up_sentences(300), 500)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size or tokenizer.get_vocab_size() + 3,
        max_position_embeddings=70,
        pad_token_id=0,
        **OWN_SIZES.get(family, SIZES),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
