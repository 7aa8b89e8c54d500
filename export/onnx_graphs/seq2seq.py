"""The encoder and the decoder step of `export.networks.seq2seq`, in the form of `export.onnx_graphs.translation`.

Positions that are a bias by distance are computed inside the graphs: in the encoder for the length of the batch, in the
decoder step for each row's own number of earlier tokens.

Shapes: B sentences of an encoder call, S source tokens, M real source tokens of all of them, N sentences of a step,
W beams, R = N x W rows, P places of the cache that are in use, D width of the model, H heads, K width of a head,
V vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.networks.seq2seq import CrossAttention, Layer, SelfAttention, Seq2SeqTransformer
from export.networks.transformer import HIDDEN, Packing, fused_attention

# The bias that hides padding from a decoder whose scores are not scaled. In a running batch the padding of a source has
# keys of other sentences, whose scores may be far above the real ones.
HIDDEN_FROM_UNSCALED = -1e4


class PackedSeq2SeqEncoder(nn.Module):
    """The encoder and the decoder's cross-attention keys and values; it computes only real tokens."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encode ids and mask, int64 [B, S]; return keys and values for each decoder layer, [B, H, S, K]."""
        model, (B, S) = self.model, input_ids.shape
        packing = Packing(attention_mask)
        position_M = packing.real_only(torch.arange(S).expand(B, S))
        bias = packing.bias_B1TT
        if model.config.relative:
            bias = bias + model.source_bias(S)
        x_MD = model.embed_source(packing.real_only(input_ids), position_M)

        def mix(attention: SelfAttention, normed_MD: Tensor) -> Tensor:
            parts = packing.put_back_parts(attention.qkv(normed_MD))
            mixed_BSD = fused_attention(*parts, bias, attention.num_heads, attention.scale)
            mixed_MD: Tensor = attention.out(packing.real_only(mixed_BSD))
            return mixed_MD

        for layer in model.encoder:
            x_MD = layer(x_MD, partial(mix, layer.attention))
        memory_MD = model.encoder_norm(x_MD)
        H, K = model.config.decoder.num_heads, model.config.head_width
        return tuple(
            packing.put_back(part_MD).view(B, S, H, K).transpose(1, 2)
            for layer in model.decoder
            for part_MD in layer.source_attention.key_value(memory_MD).chunk(2, dim=-1)
        )


class Seq2SeqDecoderStep(nn.Module):
    """The decoder step: one more token for each row; arguments and results are those of `DecoderStep`."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids_NW: Tensor, past_R: Tensor, longest: Tensor, source_mask: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute a step; see `export.onnx_graphs.translation.DecoderStep`."""
        model, (N, W), layers = self.model, ids_NW.shape, len(self.model.decoder)
        position_NW = past_R.view(N, W).to(torch.int64)
        x_NWD, caches = model.embed_target(ids_NW, position_NW), list[Tensor]()
        bias = self._bias(past_R, longest, states[0]) if model.config.relative else None

        def mix(layer: Layer, cache: tuple[Tensor, Tensor], normed_NWD: Tensor) -> Tensor:
            mixed_NWD, *after = _attend_to_past(layer.attention, normed_NWD, cache, past_R, longest, bias)
            caches.extend(after)
            return mixed_NWD

        for number, layer in enumerate(model.decoder):
            cross = states[2 * (layers + number)], states[2 * (layers + number) + 1]
            x_NWD = layer(
                x_NWD,
                partial(mix, layer, (states[2 * number], states[2 * number + 1])),
                partial(_attend_to_source, layer.source_attention, cross=cross, source_mask=source_mask),
            )
        logits_RV = model.logits(model.decoder_norm(x_NWD).flatten(0, 1))
        return logits_RV, *caches

    def _bias(self, past_R: Tensor, longest: Tensor, cache_RHPK: Tensor) -> Tensor:
        """Return the bias by distance from each row's new token to its places in use; [R, H, 1, P].

        `longest` is a tensor, which only an operator of ONNX can turn into a number of places.
        """
        # No reshape may follow: the exporter takes the places in use for those of the cache.
        zero, one = torch.zeros((), dtype=torch.int32), torch.ones((), dtype=torch.int32)
        place_P = torch.onnx.ops.symbolic(
            "Range", (zero, longest, one), {}, dtype=torch.int32, shape=(cache_RHPK.size(2),), version=11
        )
        distance_RP = (past_R[:, None] - place_P[None, :]).clamp(min=0).to(torch.int64)
        bias_RPH = functional.embedding(distance_RP, self.model.target_bias_TH)
        return bias_RPH.transpose(1, 2).unsqueeze(2)


def _attend_to_past(
    attention: SelfAttention,
    x_NWD: Tensor,
    cache: tuple[Tensor, Tensor],
    past_R: Tensor,
    longest: Tensor,
    bias_RH1P: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (N, W, _), inner = x_NWD.shape, attention.qkv.out_features // 3
    qkv_R13D = attention.qkv(x_NWD).view(N * W, 1, 3 * inner)
    attributes: dict[str, Any] = {
        "num_heads": attention.num_heads,
        "kv_num_heads": attention.num_heads,
        "scale": attention.scale,
    }
    mixed_R1D, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (qkv_R13D, None, None, *cache, past_R, longest, *(() if bias_RH1P is None else (None, None, None, bias_RH1P))),
        attributes,
        dtypes=(x_NWD.dtype,) * 3,
        shapes=((N * W, 1, inner), cache[0].shape, cache[1].shape),
        version=1,
    )
    return attention.out(mixed_R1D.view(N, W, inner)), key, value


def _attend_to_source(
    attention: CrossAttention, x_NWD: Tensor, *, cross: tuple[Tensor, Tensor], source_mask: Tensor
) -> Tensor:
    query = attention.query(x_NWD)
    mixed = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, *cross, None, source_mask),
        {
            "num_heads": attention.num_heads,
            "mask_filter_value": HIDDEN_FROM_UNSCALED if attention.scale == 1.0 else HIDDEN,
            "scale": attention.scale,
        },
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    attended_NWD: Tensor = attention.out(mixed)
    return attended_NWD
