"""The tables of an exported network hold what `transformers` computes, at any distance."""

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model, MPNetConfig, MPNetModel

from export.conversion.checkpoints.fused_attention import with_fused_attention
from tests.export.conversion.family_checkpoints import RELATIVE, SIZES


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
def test_the_bias_of_mpnet_is_looked_up(length: int) -> None:
    """Also at and beyond the distance from which all share a bucket."""
    torch.manual_seed(1)
    model = MPNetModel(MPNetConfig(**SIZES, vocab_size=9, initializer_range=1.0)).eval()
    x_BTD = torch.zeros(1, length, SIZES["hidden_size"])
    with torch.inference_mode():
        expected_BHTT = model.encoder.compute_position_bias(x_BTD)
        found_BHTT = with_fused_attention(model).encoder.compute_position_bias(x_BTD)
    torch.testing.assert_close(found_BHTT, expected_BHTT, rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 9, 47, 48, 49, 120])
@pytest.mark.parametrize("buckets", [8, 32, -1])
def test_the_buckets_of_deberta_are_looked_up(length: int, buckets: int) -> None:
    """A distance beyond the table has another number, which the network cuts to the same one."""
    fields: dict[str, Any] = {**SIZES, **RELATIVE, "position_buckets": buckets, "max_position_embeddings": 48}
    model = DebertaV2Model(DebertaV2Config(vocab_size=9, **fields)).eval()
    x_BTD = torch.zeros(1, length, SIZES["hidden_size"])
    span = buckets if buckets > 0 else 48
    with torch.inference_mode():
        expected_1TT = model.encoder.get_rel_pos(x_BTD).clamp(-span, span)
        found_1TT = with_fused_attention(model).encoder.get_rel_pos(x_BTD).clamp(-span, span)
    torch.testing.assert_close(found_1TT, expected_1TT, rtol=0, atol=0)


def test_the_given_model_is_not_changed() -> None:
    """Conversion compares with it."""
    model = MPNetModel(MPNetConfig(**SIZES, vocab_size=9)).eval()
    before = type(model.encoder.layer[0].attention.attn)
    assert type(with_fused_attention(model).encoder.layer[0].attention.attn) is not before
    assert type(model.encoder.layer[0].attention.attn) is before
