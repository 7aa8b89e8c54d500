"""A small random Marian model translates like `transformers` after conversion."""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    T5Config,
)

from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.marian import source_of_marian
from export.conversion.translation import golden_examples
from export.networks.seq2seq import Seq2SeqTransformer
from export.training.translation import TorchTranslator
from tests.conftest import ROOT, running_server
from tests.toy_translation import toy_pairs

OWN_SEARCH = {"num_beams": 3, "length_penalty": 0.7, "early_stopping": False, "max_length": 14}
# Texts in whose first word the language to translate into may be given.
CODED = (
    ">>fra<< A wonderful film.",
    ">>deu<<Not bad at all.",
    ">>xyz<< A wonderful film.",
    ">>not a code, Funny<< and warm",
    "Not bad >>fra<< at all.",
    " >>fra<< A wonderful film.",
    ">>fra A wonderful film.",
    ">><< Not bad at all.",
)


def save_marian(
    folder: Path, search: dict[str, object] | None = None, *, separate_vocabs: bool = False, **changes: object
) -> Path:
    """Save two SentencePiece models, one list of ids, and random weights."""
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
    for code in (">>fra<<", ">>deu<<"):
        pieces[code] = len(pieces)
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces))
    if separate_vocabs:  # the same pieces in another order; the special ones keep their ids
        names = list(pieces)
        names[2:-1] = names[2:-1][::-1]
        (folder / "target_vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        target_vocab_file=str(folder / "target_vocab.json") if separate_vocabs else None,
        separate_vocabs=separate_vocabs,
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
        "max_length": None,  # of the generation, which is saved below
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
    model.generation_config = GenerationConfig(
        decoder_start_token_id=pieces["<pad>"],
        eos_token_id=0,
        pad_token_id=pieces["<pad>"],
        **({"bad_words_ids": [[pieces["<pad>"]]]} | OWN_SEARCH | (search or {})),
    )
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
    """Checks spaces, capitals and unknown characters."""
    model_dir = save_marian(tmp_path / "mine")
    tokenizer, task = AutoTokenizer.from_pretrained(model_dir), source_of_marian(str(model_dir)).task()
    for text in [*GOLDEN_TEXTS, " two  spaces ", "ﬁne ② ☃ 日本", "Hunde drei blaue", *made_up_sentences(50, seed=3)]:
        assert task.preprocess(text, truncate=False, field="text").ids == tokenizer(text).input_ids, text


def test_a_language_code_at_the_beginning_is_one_token(tmp_path: Path) -> None:
    """Known and unknown codes become the ids of `MarianTokenizer`, truncated or not.

    Elsewhere they are ordinary text.
    """
    model_dir = save_marian(tmp_path / "mine")
    tokenizer, source = AutoTokenizer.from_pretrained(model_dir), source_of_marian(str(model_dir))
    task = source.task()
    for text in CODED:
        sentence = task.preprocess(text, truncate=False, field="text")
        assert sentence.ids == tokenizer(text).input_ids, text
        spans = task.spans(text, truncate=False)
        assert len(spans) == len(sentence.ids)
        if sentence.ids[0] == tokenizer.encoder[">>fra<<"]:
            assert text[slice(*(spans[0] or ()))] == ">>fra<<"
    for long in (f">>fra<< {' '.join(made_up_sentences(100))}", f">>fra<< {'dull ' * 197}"):
        cut = task.preprocess(long, truncate=True, field="text")
        assert cut.ids == tokenizer(long, truncation=True, max_length=200).input_ids
        assert len(task.spans(long, truncate=True)) == len(cut.ids) <= 200
    texts = [example.inputs["text"] for example in golden_examples(source)]
    assert any(text.startswith(">>fra<<") for text in texts)
    assert any(text.startswith(">>unknown<<") for text in texts)


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"early_stopping": True, "num_beams": 4},
        {"early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 1, "length_penalty": 1.0},
        {"forced_eos_token_id": 0, "max_length": 9},
        {
            "num_beams": 1,
            "length_penalty": 1.0,
            "repetition_penalty": 1.5,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[5], [7, 8]],
        },
        {"min_length": 8, "suppress_tokens": [6], "begin_suppress_tokens": [9], "forced_bos_token_id": 11},
    ],
    ids=str,
)
def test_the_default_search_is_the_models_own(search: dict[str, object], tmp_path: Path) -> None:
    """Without search options, translations are those of `generate` with the checkpoint's configuration."""
    model_dir = save_marian(tmp_path / "mine", search)
    model, tokenizer = MarianMTModel.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)
    source = source_of_marian(str(model_dir))
    task, translator = source.task(), TorchTranslator(source.module, torch.device("cpu"))
    for text in ("A wonderful film.", ">>fra<< Not bad at all.", *made_up_sentences(4)):
        (ids,) = model.generate(**tokenizer(text, return_tensors="pt"))
        expected = [int(token) for token in ids[1:] if int(token) != source.eos_id]
        (found,) = source.translate(translator, [task.preprocess(text, truncate=False, field="text")])
        assert found.ids == expected, text


def test_unsupported_search_options_are_refused_by_name(tmp_path: Path) -> None:
    """Refuses sampling, groups of beams, contrastive search, penalties that favour repetition, and too many beams."""
    for number, (search, text) in enumerate(
        (
            ({"do_sample": True}, "do_sample is True, which is not offered"),
            ({"repetition_penalty": 0.9}, "repetition_penalty is 0.9; from 1 to 10 is offered"),
            ({"num_beam_groups": 2}, "num_beam_groups is 2, which is not offered"),
            ({"penalty_alpha": 0.6}, "penalty_alpha is 0.6, which is not offered"),
            ({"forced_eos_token_id": 5}, "forced_eos_token_id 5 is not an eos_token_id"),
            ({"num_beams": 40}, "num_beams 40"),
        )
    ):
        with pytest.raises(LoadRefused, match=text):
            source_of_marian(str(save_marian(tmp_path / str(number), search)))


def test_other_translation_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """BART and T5 are not Marian models; a missing or damaged file is named."""
    for config in (BartConfig(), T5Config()):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(LoadRefused, match=f"model type '{config.model_type}' is not one of marian"):
            source_of_marian(str(tmp_path / config.model_type))
    whole = save_marian(tmp_path / "whole")
    for name, content, text in (
        ("source.spm", None, "has no tokenizer: source.spm is missing"),
        ("target.spm", b"half", "the tokenizer of .* cannot be loaded"),
        ("vocab.json", b"{", "vocab.json is not a JSON object"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1}', "the tokenizer has 2 tokens, the embedding"),
        ("generation_config.json", b"[]", "generation_config.json is not a JSON object"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
    ):
        folder = shutil.copytree(whole, tmp_path / "broken")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(LoadRefused, match=text):
            source_of_marian(str(folder))
        shutil.rmtree(folder)


def test_unsupported_marian_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """Refuses an unknown activation, heads of different width, and a missing folder."""
    for number, (changes, text) in enumerate(
        (
            ({"activation_function": "tanh"}, "activation 'tanh' is not one of"),
            ({"decoder_attention_heads": 2}, "encoder_attention_heads and decoder_attention_heads differ"),
        )
    ):
        with pytest.raises(LoadRefused, match=text):
            source_of_marian(str(save_marian(tmp_path / str(number), **changes)))
    with pytest.raises(LoadRefused, match="nowhere"):
        source_of_marian(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_ffn_dim": 32},
        {"tie_word_embeddings": False},
        {"separate_vocabs": True, "share_encoder_decoder_embeddings": False},
    ],
    ids=str,
)
def test_marian_models_of_other_shapes_answer_like_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    """Layers that differ, an output of its own, and a vocabulary for each language."""
    model_dir = save_marian(tmp_path / "mine", **changes)
    model, tokenizer = MarianMTModel.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)
    source = source_of_marian(str(model_dir))
    assert isinstance(source.module, Seq2SeqTransformer)
    task, translator = source.task(), TorchTranslator(source.module, torch.device("cpu"))
    for text in ("A wonderful film.", *made_up_sentences(3)):
        inputs = tokenizer(text, return_tensors="pt")
        sentence = task.preprocess(text, truncate=False, field="text")
        assert sentence.ids == inputs.input_ids[0].tolist()
        (ids,) = model.generate(**inputs)
        (found,) = source.translate(translator, [sentence])
        assert found.ids == [int(token) for token in ids[1:] if int(token) not in (source.eos_id, source.pad_id)], text
        assert task.text_of(found.ids) == tokenizer.decode(ids, skip_special_tokens=True)
