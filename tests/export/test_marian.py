"""A translation model in Marian form, small and random, against `transformers` itself."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, MarianTokenizer

from export.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.hugging_face import LoadRefused
from export.marian import source_of_marian
from tests.conftest import ROOT, running_server
from tests.toy_translation import toy_pairs


def save_marian(folder: Path, **changes: object) -> Path:
    """Two SentencePiece models, one list of ids, and random weights."""
    folder.mkdir()
    sides = {"source": [*made_up_sentences(400), *GOLDEN_TEXTS], "target": toy_pairs(400, 3).target}
    pieces: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for side, texts in sides.items():
        (folder / f"{side}.txt").write_text("\n".join(texts))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / f"{side}.txt"),
            model_prefix=str(folder / side),
            vocab_size=200 if side == "source" else 60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        for number in range(processor.get_piece_size()):
            if not processor.is_control(number) and not processor.is_unknown(number):
                pieces.setdefault(processor.id_to_piece(number), len(pieces))
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces))
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )
    tokenizer.save_pretrained(folder)
    settings = {
        "vocab_size": len(pieces),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 200,
        "activation_function": "swish",
        "scale_embedding": True,
        "init_std": 0.3,
        "pad_token_id": pieces["<pad>"],
        "decoder_start_token_id": pieces["<pad>"],
        "eos_token_id": 0,
        "forced_eos_token_id": None,
        **changes,
    }
    torch.manual_seed(1)
    model = MarianMTModel(MarianConfig(**settings))
    with torch.no_grad():
        model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_loaded_translator_answers_like_transformers(tmp_path: Path) -> None:
    """The command writes a folder; the server's translations equal those of `generate`, tokens and text."""
    model_dir = save_marian(tmp_path / "mine")
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "translation"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    model, tokenizer = MarianMTModel.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)
    texts = [
        "A wonderful film.",
        "Not bad at all.",
        "  Great   fun for the kids!",
        "Schöne Bilder ☃",
        *made_up_sentences(6),
    ]
    found = set()
    with running_server(tmp_path / "store") as server:
        for beams in (1, 4):
            for text in texts:
                ids = model.generate(
                    **tokenizer(text, return_tensors="pt"),
                    num_beams=beams,
                    max_new_tokens=12,
                    length_penalty=1.0,
                    early_stopping=True,
                    do_sample=False,
                )
                expected = tokenizer.decode(ids[0], skip_special_tokens=True)
                body = {"inputs": text, "parameters": {"num_beams": beams, "max_new_tokens": 12}}
                request = urllib.request.Request(f"{server.http}/models/mine", json.dumps(body).encode())
                with urllib.request.urlopen(request, timeout=10) as response:
                    (answer,) = json.load(response)
                assert answer["translation_text"] == expected, (text, beams)
                found.add(expected)
    assert len(found) > 4


def test_texts_become_the_ids_of_the_models_own_tokenizer(tmp_path: Path) -> None:
    """Spaces, capitals, characters that it has never seen."""
    model_dir = save_marian(tmp_path / "mine")
    tokenizer, task = AutoTokenizer.from_pretrained(model_dir), source_of_marian(str(model_dir)).task()
    for text in [*GOLDEN_TEXTS, " two  spaces ", "ﬁne ② ☃ 日本", "Hunde drei blaue", *made_up_sentences(50, seed=3)]:
        assert task.preprocess(text, truncate=False, field="text").ids == tokenizer(text).input_ids, text


def test_what_cannot_be_loaded_is_refused_in_words(tmp_path: Path) -> None:
    """Sides of different shape, an unknown activation, nothing there."""
    for number, (changes, text) in enumerate(
        (
            ({"decoder_ffn_dim": 32}, "encoder_ffn_dim and decoder_ffn_dim differ"),
            ({"activation_function": "tanh"}, "activation 'tanh' is not one of"),
            ({"tie_word_embeddings": False}, "the network is not the one in transformers"),
        )
    ):
        with pytest.raises(LoadRefused, match=text):
            source_of_marian(str(save_marian(tmp_path / str(number), **changes)))
    with pytest.raises(LoadRefused, match="nowhere"):
        source_of_marian(str(tmp_path / "nowhere"))
