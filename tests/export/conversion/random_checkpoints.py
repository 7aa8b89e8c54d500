"""Small random checkpoints in Hugging Face form, for tests of conversion."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from export.conversion.golden_texts import made_up_sentences
from export.data.tokenizers import train_tokenizer

FAMILIES: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertForSequenceClassification),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}
MAX_TOKENS, WIDTH = 64, 32


def save_model(kind: str, folder: Path, *, pairs: bool = False, **options: object) -> Path:
    """Save a random classifier with three classes and at most 64 tokens, with its tokenizer.

    Args:
        kind: the family.
        folder: the folder of the checkpoint.
        pairs: whether the tokenizer separates the two texts of a pair.
        options: fields of the configuration.
    """
    tokenizer = train_tokenizer(made_up_sentences(300), 600)
    if pairs:
        sep = tokenizer.token_to_id("!")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", pair="[CLS] $A ! $B:1 !:1", special_tokens=[("[CLS]", 1), ("!", sep)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if pairs else [])],
    ).save_pretrained(folder)
    sizes = (
        {"dim": WIDTH, "n_heads": 4, "n_layers": 2, "hidden_dim": 64}
        if kind == "distilbert"
        else {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    )
    torch.manual_seed(1)
    config, model = FAMILIES[kind]
    labels = {"id2label": {0: "bad", 1: "mixed", 2: "good"}, "label2id": {"bad": 0, "mixed": 1, "good": 2}}
    settings = {
        "initializer_range": 0.2,
        "max_position_embeddings": 130,
        "pad_token_id": 0,
        **sizes,
        **labels,
        **options,
    }
    model(config(vocab_size=tokenizer.get_vocab_size(), **settings)).save_pretrained(folder)
    return folder


def add_sentence_layers(
    folder: Path, *kinds: str, pooling: dict[str, object] | None = None, own: dict[str, object] | None = None
) -> Path:
    """Add the layers of sentence-transformers to a checkpoint.

    Args:
        folder: the folder of the checkpoint.
        kinds: the layers behind the encoder: "Pooling", "Dense", "Normalize".
        pooling: the configuration of the pooling.
        own: fields of `config_sentence_transformers.json`.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, kind in enumerate(kinds, 1):
        path = f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir()
        if kind == "Pooling":
            (folder / path / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
        if kind == "Dense":
            torch.manual_seed(2)
            linear = torch.nn.Linear(WIDTH, 8)
            config = {"in_features": WIDTH, "out_features": 8, "bias": True}
            activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
            (folder / path / "config.json").write_text(json.dumps(config | activation))
            state = {f"linear.{name}": weight for name, weight in linear.state_dict().items()}
            torch.save(state, folder / path / "pytorch_model.bin")
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own or {}))
    return folder
