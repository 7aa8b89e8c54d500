"""The encoder and its variants equal torch's own layers."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from export.networks.transformer import (
    Dropout,
    EncoderConfig,
    EncoderLayer,
    TextClassifier,
    scaled_dot_product_attention,
    sinusoidal_positions,
)

SMALL = EncoderConfig(
    vocab_size=50, num_labels=3, d_model=16, num_layers=2, num_heads=4, d_ff=32, dropout=0.0, max_tokens=32
)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 10, 6 and 1 real tokens."""
    torch.manual_seed(3)
    mask = torch.zeros(3, 10, dtype=torch.int64)
    for row, length in enumerate((10, 6, 1)):
        mask[row, :length] = 1
    return torch.randint(2, 50, (3, 10)) * mask, mask


def test_attention_equals_torch() -> None:
    """Values equal those of torch's kernel; weights are rows that sum to one, with zero on padding."""
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]
    bias = (~keep).float() * -1e4
    mixed = scaled_dot_product_attention(query, key, value, bias)
    torch.testing.assert_close(mixed, functional.scaled_dot_product_attention(query, key, value, attn_mask=keep))
    value[1, :, 3:] = torch.randn(4, 2, 8)  # padding
    torch.testing.assert_close(scaled_dot_product_attention(query, key, value, bias), mixed, rtol=0, atol=0)


def test_positions_are_those_of_the_paper() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos of the same."""
    table = sinusoidal_positions(20, 16)
    for position, pair in ((0, 0), (7, 3), (19, 7)):
        angle = position / 10000 ** (2 * pair / 16)
        assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_a_layer_equals_torchs_encoder_layer(norm_position: str) -> None:
    """Both have the same weights, and padding is masked."""
    config = dataclasses.replace(SMALL, norm_position=norm_position, activation="relu")
    ours = EncoderLayer(config).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_position == "pre"
    ).eval()
    pairs = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.out.weight",
        "self_attn.out_proj.bias": "attention.out.bias",
        "linear1.weight": "feed_forward.up.weight",
        "linear1.bias": "feed_forward.up.bias",
        "linear2.weight": "feed_forward.down.weight",
        "linear2.bias": "feed_forward.down.bias",
        "norm1.weight": "attention_norm.weight",
        "norm1.bias": "attention_norm.bias",
        "norm2.weight": "feed_forward_norm.weight",
        "norm2.bias": "feed_forward_norm.bias",
    }
    state = ours.state_dict()
    theirs.load_state_dict({name: state[mine] for name, mine in pairs.items()})
    _, mask = padded_batch()
    torch.manual_seed(2)
    x_BTD = torch.randn(3, 10, 16)
    expected = theirs(x_BTD, src_key_padding_mask=mask == 0)
    actual = ours(x_BTD, (1.0 - mask[:, None, None, :].float()) * -1e4)
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)


VARIANTS = [
    {},
    {"norm_position": "post"},
    {"embedding_width": 8},
    {"norm": "rmsnorm"},
    {"activation": "swiglu"},
    {"activation": "relu"},
    {"positions": "learned"},
    {"positions": "rotary"},
    {"pooling": "cls"},
    {"pooling": "max"},
]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_padding_changes_no_answer(change: dict[str, str]) -> None:
    """In every variant a text has the same logits alone and beside longer ones, and every weight gets a gradient."""
    torch.manual_seed(4)
    model = TextClassifier(dataclasses.replace(SMALL, **change)).eval()
    ids, mask = padded_batch()
    together = model(ids, mask)
    for row, length in enumerate((10, 6, 1)):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    together.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_shapes_that_cannot_be_built_are_refused() -> None:
    """The message has the numbers that do not fit."""
    with pytest.raises(ValueError, match="d_model 16 is not a multiple of num_heads 3"):
        dataclasses.replace(SMALL, num_heads=3)
    with pytest.raises(ValueError, match="even head width"):
        dataclasses.replace(SMALL, d_model=12, num_heads=4, positions="rotary")


def test_dropout_zeroes_its_fraction_and_keeps_the_mean() -> None:
    """Dropout follows torch's seed, works in training only, and scales up the kept values, in bfloat16 too."""
    dropout = Dropout(0.3)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(999, 101, dtype=dtype)
        torch.manual_seed(4)
        first = dropout(x)
        torch.manual_seed(4)
        assert torch.equal(dropout(x), first)
        assert not torch.equal(dropout(x), first)
        assert first.dtype == dtype
        assert float((first == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
        assert float(first.float().mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_passes_gradients_where_it_passes_values() -> None:
    """Values and gradients are scaled alike."""
    x = torch.ones(64, 64, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
