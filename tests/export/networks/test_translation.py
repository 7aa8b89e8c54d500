"""Translation networks equal torch's own layers, and step-by-step decoding equals teacher forcing."""

import pytest
import torch
from torch import nn

from export.networks.translation import (
    BOS_ID,
    EOS_ID,
    DecoderLayer,
    RecurrentTranslationConfig,
    RecurrentTranslator,
    TranslationConfig,
    TranslationTransformer,
    padding_bias,
)

SMALL = TranslationConfig(
    vocab_size=40, d_model=16, num_layers=2, num_decoder_layers=3, num_heads=4, d_ff=32, dropout=0.0, max_tokens=32
)
RECURRENT = RecurrentTranslationConfig(vocab_size=40, d_model=16, dropout=0.0)


def networks() -> list[nn.Module]:
    """Build both kinds, with equal random weights each time."""
    torch.manual_seed(5)
    post = TranslationConfig(**{**vars(SMALL), "norm_position": "post"})
    built = [TranslationTransformer(SMALL), TranslationTransformer(post), RecurrentTranslator(RECURRENT)]
    return [network.eval() for network in built]


def padded_sources() -> tuple[torch.Tensor, torch.Tensor]:
    """Three sentences of 7, 4 and 1 tokens."""
    torch.manual_seed(3)
    mask = torch.zeros(3, 7, dtype=torch.int64)
    for row, length in enumerate((7, 4, 1)):
        mask[row, :length] = 1
    return torch.randint(EOS_ID, 40, (3, 7)) * mask, mask


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_equals_torch(pre_norm: bool) -> None:
    """Compares with torch's TransformerDecoderLayer, with the projections of keys and values joined."""
    config = TranslationConfig(**{**vars(SMALL), "norm_position": "pre" if pre_norm else "post", "activation": "relu"})
    torch.manual_seed(2)
    ours = DecoderLayer(config).eval()
    theirs = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=pre_norm).eval()
    for linear in (ours.attention.qkv, ours.cross.query, ours.cross.key_value):
        nn.init.normal_(linear.bias)
    cross = ours.cross
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
        theirs.multihead_attn.in_proj_weight.copy_(torch.cat((cross.query.weight, cross.key_value.weight)))
        theirs.multihead_attn.in_proj_bias.copy_(torch.cat((cross.query.bias, cross.key_value.bias)))
    for mine, torchs in (
        (ours.attention.out, theirs.self_attn.out_proj),
        (cross.out, theirs.multihead_attn.out_proj),
        (ours.feed_forward.up, theirs.linear1),
        (ours.feed_forward.down, theirs.linear2),
    ):
        torchs.load_state_dict(mine.state_dict())
    _, mask_BS = padded_sources()
    memory_BSD, x_BTD = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    later_TT = torch.full((5, 5), -1e4).triu(1)
    actual = ours(x_BTD, later_TT, *cross.keys_and_values(memory_BSD), padding_bias(mask_BS, torch.float32))
    expected = theirs(
        x_BTD, memory_BSD, tgt_mask=later_TT.bool(), memory_key_padding_mask=mask_BS == 0, tgt_is_causal=True
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["pre-norm", "post-norm", "lstm"])
def test_stepwise_decoding_equals_teacher_forcing(kind: int) -> None:
    """Token by token, each network predicts the same as with the whole target."""
    network = networks()[kind]
    source_ids, source_mask = padded_sources()
    target_ids = torch.cat((torch.full((3, 1), BOS_ID), torch.randint(EOS_ID, 40, (3, 5))), dim=1)
    with torch.inference_mode():
        whole = network(source_ids, source_mask, target_ids, torch.ones_like(target_ids)).view(3, 6, -1)
        state = network.begin(source_ids, source_mask)
        for place in range(6):
            logits_RV, state = network.step(target_ids[:, place], state)
            torch.testing.assert_close(logits_RV, whole[:, place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["pre-norm", "post-norm", "lstm"])
def test_padding_changes_no_logits(kind: int) -> None:
    """A sentence alone gets the same logits as in a padded batch."""
    network = networks()[kind]
    source_ids, source_mask = padded_sources()
    target_ids, target_mask = torch.randint(EOS_ID, 40, (3, 6)), torch.ones(3, 6, dtype=torch.int64)
    target_mask[1, 4:] = 0
    with torch.inference_mode():
        together = network(source_ids, source_mask, target_ids, target_mask).split(target_mask.sum(1).tolist())
        alone = network(source_ids[1:2, :4], source_mask[1:2, :4], target_ids[1:2, :4], target_mask[1:2, :4])
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_later_tokens() -> None:
    """Another last token changes only the last logits."""
    network = networks()[0]
    source_ids, source_mask = padded_sources()
    target_ids = torch.randint(EOS_ID, 40, (3, 6))
    changed = target_ids.clone()
    changed[:, 5] = (target_ids[:, 5] + 1) % 37 + EOS_ID
    with torch.inference_mode():
        before = network(source_ids, source_mask, target_ids, torch.ones_like(target_ids)).view(3, 6, -1)
        after = network(source_ids, source_mask, changed, torch.ones_like(target_ids)).view(3, 6, -1)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


def test_positions_other_than_sinusoidal_are_refused() -> None:
    """They would otherwise be ignored."""
    with pytest.raises(ValueError, match="sinusoidal"):
        TranslationTransformer(TranslationConfig(**{**vars(SMALL), "positions": "learned"}))
