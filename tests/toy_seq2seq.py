"""Small random checkpoints of Hugging Face's encoder-decoder families, with tokenizers trained on a few sentences."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from export.conversion.checkpoints.reading import provide_sentencepiece_messages
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences

TEXTS = [*made_up_sentences(300), *GOLDEN_TEXTS]
MAX_TOKENS = 64
BART_LIKE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": MAX_TOKENS,
    "init_std": 0.5,
    "scale_embedding": True,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5_LIKE = {
    "d_model": 32,
    "d_kv": 16,  # which is not d_model / num_heads
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "initializer_factor": 3.0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "n_positions": MAX_TOKENS,
}


def train_pieces(folder: Path, name: str, vocab_size: int, **options: Any) -> Path:
    """Train a SentencePiece model."""
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "pieces"),
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "texts.txt").unlink()
    (folder / "pieces.vocab").unlink()
    return (folder / "pieces.model").rename(folder / name)


def save(folder: Path, model: Any, search: dict[str, Any]) -> Path:
    """Save a model with clear preferences among its next tokens, and its search settings."""
    config = model.config
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **search,
    )
    model.save_pretrained(folder)
    return folder


def save_t5(folder: Path, search: dict[str, Any] | None = None, *, spm_only: bool = False, **changes: Any) -> Path:
    """Save a T5; with `spm_only` its tokenizer is nothing but the SentencePiece model."""
    folder.mkdir()
    pieces = train_pieces(folder, "spiece.model", 150, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 10, "model_max_length": MAX_TOKENS})
    )
    provide_sentencepiece_messages()
    tokenizer = T5Tokenizer.from_pretrained(folder)
    if not spm_only:
        pieces.unlink()
        tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = T5Config(vocab_size=len(tokenizer) + 6, **{**T5_LIKE, **changes})
    return save(folder, T5ForConditionalGeneration(config).eval(), search or {})


def save_bart(folder: Path, search: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Save a BART."""
    folder.mkdir()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.save_model(str(folder))
    tokenizer = BartTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = BartConfig(vocab_size=len(tokenizer), **{**BART_LIKE, **changes})
    return save(folder, BartForConditionalGeneration(config).eval(), search or {})


def save_mbart(folder: Path, search: dict[str, Any] | None = None, *, fifty: bool = False, **changes: Any) -> Path:
    """Save an mBART, or one of 50 languages, whose tokens of languages stand elsewhere."""
    folder.mkdir()
    pieces = train_pieces(folder, "sentencepiece.bpe.model", 150)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())]
    kind: Any = MBart50Tokenizer if fifty else MBartTokenizer
    codes = ("en_XX", "de_DE", "fr_XX", "ro_RO")
    tokenizer = kind(
        vocab=[*vocab, *((code, 0.0) for code in codes), ("<mask>", 0.0)], src_lang="en_XX", tgt_lang="de_DE"
    )
    pieces.unlink()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = MBartConfig(vocab_size=len(tokenizer), **{**BART_LIKE, **changes})
    return save(folder, MBartForConditionalGeneration(config).eval(), search or {})


def save_m2m(folder: Path, search: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Save an M2M-100, whose tokenizer is a SentencePiece model of byte pairs and a list of ids."""
    folder.mkdir()
    pieces = train_pieces(folder, "sentencepiece.bpe.model", 200, model_type="bpe")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(pieces), src_lang="en", tgt_lang="de")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = M2M100Config(vocab_size=len(names) + 100 + 8, **{**BART_LIKE, **changes})
    return save(folder, M2M100ForConditionalGeneration(config).eval(), search or {})


def save_nllb(folder: Path, search: dict[str, Any] | None = None) -> Path:
    """Save an NLLB: the network of M2M-100 with another tokenizer."""
    folder.mkdir()
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("▁", "a"), ("▁", "t"), ("i", "n"), ("e", "r")]
    vocab = {name: number for number, name in enumerate([*names, *("".join(pair) for pair in merges)])}
    codes = ["eng_Latn", "deu_Latn", "fra_Latn"]
    tokenizer = NllbTokenizer(
        vocab=vocab, merges=merges, src_lang="eng_Latn", tgt_lang="fra_Latn", additional_special_tokens=codes
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = M2M100Config(vocab_size=len(tokenizer), **BART_LIKE)
    return save(folder, M2M100ForConditionalGeneration(config).eval(), search or {})
