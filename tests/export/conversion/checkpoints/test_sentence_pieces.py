"""Tokenizers of every family, from the files of their vocabulary alone."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer

from export.conversion.checkpoints.reading import ODD_TEXTS, LoadRefused, check_same_tokens
from export.conversion.checkpoints.sentence_pieces import remark_on_pieces
from export.conversion.golden_texts import GOLDEN_TEXTS
from export.conversion.text_checkpoint import classifier_of_hugging_face
from service.tasks.text.classification import TextClassification
from service.tasks.text.tokenization import Pair
from tests.export.conversion.family_checkpoints import FAMILIES, MAX_TOKENS, save_checkpoint, save_tokenizer

VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json")
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vocabulary_of_a_family_is_enough(family: str, tmp_path: Path) -> None:
    """No `tokenizer_config.json`, no `tokenizer.json` where the family has other files: ids are those of its class."""
    folder = tmp_path / family
    tokenizer = save_tokenizer(family, folder)
    backend = tokenizer.backend_tokenizer.to_str()
    task = TextClassification(
        backend, max_tokens=MAX_TOKENS, pad_id=tokenizer.pad_token_id, graph_inputs=INPUTS, labels=["a", "b"]
    )
    check_same_tokens(task, tokenizer, MAX_TOKENS)
    whole = (folder / "tokenizer.json").is_file()
    assert whole == (family == "modernbert")
    assert task.preprocess(Pair("dull", "film"), truncate=False, field="text").ids[-1] == tokenizer.sep_token_id


@pytest.mark.parametrize(("family", "same"), [("xlm-roberta", True), ("albert", True), ("deberta-v2", False)])
def test_pieces_are_compared_with_sentencepiece(family: str, same: bool, tmp_path: Path) -> None:
    """A difference is said on the card, with the texts."""
    tokenizer = save_tokenizer(family, tmp_path / family)
    said = remark_on_pieces(str(tmp_path / family), tokenizer)
    if same:
        assert said == {}
    else:
        assert "of spm.model; it cuts 2 of 19 texts differently than SentencePiece does" in said["tokenizer"]
        assert "②" in said["tokenizer"]
        tokenizer.save_pretrained(tmp_path / family)
        assert remark_on_pieces(str(tmp_path / family), tokenizer) == {}  # the saved form is what was meant


@pytest.mark.parametrize("lower", [True, False])
def test_the_case_of_word_pieces_is_that_of_the_settings(lower: bool, tmp_path: Path) -> None:
    """`do_lower_case` is kept when served; without it `transformers` converts to lower case."""
    folder = save_checkpoint("bert", tmp_path / "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": lower}))
    source = classifier_of_hugging_face(str(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in (*GOLDEN_TEXTS[:9], *ODD_TEXTS):
        expected = theirs(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        assert list(source.item(text).ids) == expected
    assert (source.item("DULL").ids == source.item("dull").ids) == lower
    path.unlink()
    without = classifier_of_hugging_face(str(folder))
    assert without.item("DULL").ids == without.item("dull").ids
    assert without.max_tokens == MAX_TOKENS  # the network's own limit


def test_a_tokenizer_without_a_fast_form_is_refused_by_name(tmp_path: Path) -> None:
    """The sentence says which one, and what is offered."""
    folder = save_checkpoint("roberta", tmp_path / "phobert")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("film 9\ndull 7\n")
    (folder / "bpe.codes").write_text("d u 9\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    assert transformers.PhobertTokenizer.from_pretrained(folder)
    with pytest.raises(LoadRefused, match="PhobertTokenizer exists only as Python code.*: tokenizer.json, vocab"):
        classifier_of_hugging_face(str(folder))
