"""Small random checkpoints of Hugging Face, each with a tokenizer of another kind."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig, XLMRobertaConfig

from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences

TEXTS = [*GOLDEN_TEXTS, *made_up_sentences(200, seed=3), "Ada Lovelace lived in London and in São Paulo, 東京."]
MAX_TOKENS = 40
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
KINDS = ("bert", "roberta", "xlm-roberta")  # WordPiece, byte-level BPE, SentencePiece's unigrams
BOTH = [("<s>", 0), ("</s>", 2)]


def _word_pieces() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "mask_token": "[MASK]",
                       "sep_token": "[SEP]"}  # fmt: skip


def _byte_pairs() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer, _marks()


def _unigrams() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=BOTH
    )
    return tokenizer, _marks()


def _marks() -> dict[str, Any]:
    return {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
            "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip


def save_checkpoint(kind: str, model_class: Any, folder: Path, **options: Any) -> Path:
    """Save a random model with its tokenizer; it takes at most 40 tokens.

    Args:
        kind: one of `KINDS`.
        model_class: a class of `transformers` that is made of a configuration, such as an automatic one.
        folder: where to save it.
        options: further fields of `config.json`.
    """
    tokenizer, marks = {"bert": _word_pieces, "roberta": _byte_pairs, "xlm-roberta": _unigrams}[kind]()
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, model_input_names=names, **marks
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = {"bert": BertConfig, "roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}[kind]
    settings = {"initializer_range": 0.3, "max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 2,
                "pad_token_id": fast.pad_token_id, "vocab_size": tokenizer.get_vocab_size(), **SIZES}  # fmt: skip
    model_class.from_config(config(**settings | options)).save_pretrained(folder)
    return folder


def labelled(names: list[str]) -> dict[str, Any]:
    """Return the fields of `config.json` that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def answers_of(source: Any, inputs: list[Any], *, truncate: bool = False) -> list[Any]:
    """Compute the answers of the served task with the network in PyTorch; all inputs share a call, with padding."""
    task = source.served
    items = [task.rows_of(given, truncate=truncate, field="the input", max_rows=64) for given in inputs]
    feeds = task.collate(items)
    with torch.inference_mode():
        computed = source.module(*(torch.from_numpy(feeds[name]) for name in source.input_names)).numpy()
    return [task.finish(result) for result in task.split_batch({source.output_name: computed}, items)]
