"""Pre-trained encoders compute the same in this repository's network."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from export.networks.bert_weights import (
    bert_config,
    bert_weights,
    in_fewer_dimensions,
    pieces_to_keep,
    renamed,
    with_pieces,
)
from export.networks.transformer import TextClassifier


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[BertModel, Path]:
    """A small random BERT, and the folder where it is saved."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    model = BertModel(config).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder


def test_hidden_states_are_those_of_transformers(bert: tuple[BertModel, Path]) -> None:
    """Compares padded rows of different length, and the mean over real tokens that the classifier's head gets."""
    theirs, folder = bert
    mine = TextClassifier(bert_config(folder, num_labels=2, dropout=0.1)).eval()
    head = {name: weight for name, weight in mine.state_dict().items() if name.startswith("head.")}
    mine.load_state_dict(bert_weights(folder) | head)
    mine.head = torch.nn.Identity()  # type: ignore[assignment]  # the pooled vector itself
    ids_BT = torch.randint(5, 97, (6, 23))
    mask_BT = (torch.arange(23) < torch.tensor([23, 20, 11, 5, 2, 1])[:, None]).long()
    with torch.inference_mode():
        hidden_BTD = theirs(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        pooled_BD = (hidden_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
        # The head's type decides that of the mask's bias, so it has to say one.
        mine.head.weight = torch.nn.Parameter(torch.zeros(1))
        torch.testing.assert_close(mine(ids_BT, mask_BT), pooled_BD, atol=1e-5, rtol=1e-5)


def test_every_weight_but_the_pooler_is_used(bert: tuple[BertModel, Path]) -> None:
    """The network has as many numbers as BERT without pooler and token types, which are folded in."""
    theirs, _ = bert
    weights = renamed(theirs.state_dict())
    left_out = ("pooler.", "embeddings.token_type_embeddings.")
    expected = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith(left_out))
    assert sum(weight.numel() for weight in weights.values()) == expected


def test_a_smaller_vocabulary_still_writes_any_text() -> None:
    """Words of the texts keep their pieces.

    Others get smaller pieces, down to characters; special tokens keep their places.
    """
    characters = [prefix + character for character in "aefgilmnorstuwy" for prefix in ("", "##")]
    words = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *characters,
        "the",
        "film",
        "##s",
        "\u6620",
        "story",
        "war",
    ]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    needed = 4 + len(characters) + 2
    kept = pieces_to_keep(tokenizer, ["the films"] * 5 + ["a story"], needed, min_occurrences=5)
    smaller = with_pieces(tokenizer, kept)
    assert smaller.get_vocab_size() == needed
    assert smaller.encode("The films").tokens == ["[CLS]", "the", "film", "##s", "[SEP]"]
    assert smaller.encode("story").tokens == ["[CLS]", "s", "##t", "##o", "##r", "##y", "[SEP]"]
    assert smaller.encode("\u6620").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert [kept[number] for number in smaller.encode("the film").ids] == tokenizer.encode("the film").ids
    more = with_pieces(tokenizer, pieces_to_keep(tokenizer, ["the films"] * 5, needed + 1, min_occurrences=5))
    assert more.encode("story war").tokens == ["[CLS]", "story", "w", "##a", "##r", "[SEP]"]
    with pytest.raises(ValueError, match=f"vocab_size 9 is too small: {needed} pieces"):
        pieces_to_keep(tokenizer, ["the films"] * 5, 9)


def test_fewer_dimensions_keep_the_largest_variance() -> None:
    """Vectors in a plane are kept exactly in two dimensions."""
    generator = torch.Generator().manual_seed(1)
    plane_VD = torch.randn(50, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    reduced_VW = in_fewer_dimensions(plane_VD, 2)
    assert reduced_VW.shape == (50, 2)
    torch.testing.assert_close(reduced_VW @ reduced_VW.T, plane_VD @ plane_VD.T, atol=1e-4, rtol=1e-4)


def test_another_kind_of_encoder_is_refused(bert: tuple[BertModel, Path], tmp_path: Path) -> None:
    """Relative positions and other activations would be computed wrongly without notice."""
    config = json.loads((bert[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match="relu"):
        bert_config(tmp_path, num_labels=2, dropout=0.1)
