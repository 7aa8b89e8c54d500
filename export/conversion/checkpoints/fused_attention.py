"""Networks of `transformers` in the form that is exported: attention as one operator, distances from tables.

Relative positions are sorted into buckets by the logarithm of the distance. Exported as it is written, float16 rounds
the logarithm into other buckets: logits of a small DeBERTa-v2 were 0.25 off, those of an MPNet 0.54. The bucket of each
distance is therefore a constant of the graph.

Shapes: B rows, T tokens, D width, H heads, K width of a head, N distances.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from export.conversion.checkpoints.text_families import TEXT_FAMILIES
from export.networks.transformer import HIDDEN, fused_attention, padding_bias

FUSED = "heed_fused"


def with_fused_attention(model: Any) -> Any:
    """Copy a model with its weights for an export, with fused attention where its family can have it.

    Args:
        model: a model of `transformers`, of a family of `TEXT_FAMILIES`.

    Returns:
        a model that works only inside an export.
    """
    family = TEXT_FAMILIES[model.config.model_type]
    copy = type(model)(deepcopy(model.config))  # a copy, because the configuration holds the form of attention
    copy.load_state_dict(model.state_dict())
    if family.distances is not None:
        DISTANCES[family.distances](copy.base_model.encoder)
    if family.attention == "of MPNet":
        for layer in copy.base_model.encoder.layer:
            layer.attention.attn = _MPNetAttention(layer.attention.attn)
    if family.attention != "by interface":
        return copy.eval()
    hidden = HIDDEN if family.hidden is None else family.hidden
    form = f"{FUSED}_{abs(hidden):g}"
    AttentionInterface.register(form, _fused_attention)
    AttentionMaskInterface.register(form, partial(_bias, hidden=hidden))
    copy.set_attn_implementation(form)
    return copy.eval()


def _bias(*, attention_mask: Tensor, mask_function: Any, hidden: float, **more: Any) -> Tensor:
    """Return the bias that every layer adds to its attention scores; [B, 1, T, T]."""
    if mask_function is bidirectional_mask_function:
        return padding_bias(attention_mask, hidden)
    # Windows of tokens, as ModernBERT has them.
    options = more | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    visible_B1TT = sdpa_mask(attention_mask=attention_mask, mask_function=mask_function, **options)
    assert visible_B1TT is not None
    return hidden * (1.0 - visible_B1TT.to(torch.float32))


def _fused_attention(
    module: nn.Module,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    bias_B1TT: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    B, H, T, K = query_BHTK.shape
    query, key, value = (part.transpose(1, 2).reshape(B, T, H * K) for part in (query_BHTK, key_BHTK, value_BHTK))
    mixed_BTD = fused_attention(query, key, value, bias_B1TT, H)
    return mixed_BTD.view(B, T, H, K), None


class _MPNetAttention(nn.Module):
    """The self-attention of MPNet, whose relative positions are a bias on the scores of each head."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
        self.num_heads = attention.num_attention_heads

    def forward(self, x_BTD: Tensor, attention_mask: Tensor, position_bias: Tensor, **_: Any) -> tuple[Tensor]:
        bias_BHTT = position_bias + attention_mask.clamp(min=HIDDEN)
        mixed_BTD = fused_attention(self.q(x_BTD), self.k(x_BTD), self.v(x_BTD), bias_BHTT, self.num_heads)
        return (self.o(mixed_BTD),)


def _distances(length: int, largest: int) -> Tensor:
    """Return how far a query stands behind a key, at most `largest` in either direction, from 0 on; int64 [T, T]."""
    positions_T = torch.arange(length)
    return (positions_T[:, None] - positions_T[None, :]).clamp(-largest, largest) + largest


def _tabulate_mpnet(encoder: Any) -> None:
    """Look buckets up in a table; distances from 128 on share one."""
    largest = 128
    # MPNet counts from the query to the key.
    encoder.register_buffer("buckets_N", encoder.relative_position_bucket(-torch.arange(-largest, largest + 1)))

    def compute_position_bias(x_BTD: Tensor, **_: Any) -> Tensor:
        values_TTH = encoder.relative_attention_bias(encoder.buckets_N[_distances(x_BTD.shape[1], largest)])
        bias_1HTT: Tensor = values_TTH.permute(2, 0, 1).unsqueeze(0)
        return bias_1HTT

    encoder.compute_position_bias = compute_position_bias


def _tabulate_deberta(encoder: Any) -> None:
    """Look buckets up in a table; distances from `max_relative_positions` on share the last one."""
    if not encoder.relative_attention or encoder.position_buckets <= 0:
        return
    largest = encoder.max_relative_positions
    distances_N = torch.arange(-largest, largest + 1)
    buckets_N = make_log_bucket_position(distances_N, encoder.position_buckets, largest).to(torch.int64)
    encoder.register_buffer("buckets_N", buckets_N)

    def get_rel_pos(hidden_states: Tensor, *_: Any) -> Tensor:
        buckets_1TT: Tensor = encoder.buckets_N[_distances(hidden_states.shape[-2], largest)].unsqueeze(0)
        return buckets_1TT

    encoder.get_rel_pos = get_rel_pos


DISTANCES = {"of MPNet": _tabulate_mpnet, "of DeBERTa": _tabulate_deberta}
