"""An encoder-decoder Transformer with the options of the families that `transformers` knows.

    source ids ──> encoder ──> keys and values for each decoder layer ──> decoder ──> logits of the next token

The layers are those of Vaswani et al. 2017. The families differ in where they normalise (BART, arXiv 1910.13461, after
each sub-layer; mBART, M2M-100 and T5 before it), in positions (a table; or T5's bias on the scores by distance, arXiv
1910.10683, section 2.1), in biases, gates and scales. Weights come from a checkpoint; nothing is trained here.

Shapes: B sentences, S source tokens, T target tokens, N real target tokens of all sentences, R rows of a decoder step,
P earlier tokens of a row, D width of the model, H heads, K width of a head, F width of the feed-forward, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.networks.transformer import NEGATIVE, Layers
from export.networks.translation import State, padding_bias

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Shape of the encoder or of the decoder."""

    num_layers: int
    num_heads: int
    d_ff: int


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """Everything that fixes the network's shape.

    Attributes:
        source_vocab_size: tokens of the source.
        vocab_size: tokens of the target.
        d_model: width of the model.
        head_width: width of a head, in both stacks.
        encoder: shape of the encoder.
        decoder: shape of the decoder.
        max_tokens: longest source and longest target.
        activation: a name of `ACTIVATIONS`.
        norm_position: before each sub-layer, or after its residual sum.
        norm: kind of normalisation.
        norm_eps: added to the variance.
        embedding_norm: normalise the sum of embedding and position.
        final_norm: normalise the output of both stacks.
        gated: the feed-forward network is gated (Shazeer 2020, arXiv 2002.05202).
        bias: products of attention and feed-forward have a bias.
        relative: positions are a bias on the scores of self-attention, by distance; otherwise a table is added.
        attention_scale: factor of the scores.
        embedding_scale: factor of the embeddings.
        output_scale: factor of the decoder's output before the logits.
    """

    source_vocab_size: int
    vocab_size: int
    d_model: int
    head_width: int
    encoder: StackConfig
    decoder: StackConfig
    max_tokens: int
    activation: str
    norm_position: Literal["pre", "post"]
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = False
    final_norm: bool = False
    gated: bool = False
    bias: bool = True
    relative: bool = False
    attention_scale: float
    embedding_scale: float = 1.0
    output_scale: float = 1.0


class SelfAttention(nn.Module):
    """Projections of self-attention; queries, keys and values in one product."""

    def __init__(self, config: Seq2SeqConfig, stack: StackConfig) -> None:
        super().__init__()
        inner = stack.num_heads * config.head_width
        self.num_heads, self.scale = stack.num_heads, config.attention_scale
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=config.bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.bias)


class CrossAttention(nn.Module):
    """Projections of attention from target tokens to source tokens."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        inner = config.decoder.num_heads * config.head_width
        self.num_heads, self.scale = config.decoder.num_heads, config.attention_scale
        self.query = nn.Linear(config.d_model, inner, bias=config.bias)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=config.bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.bias)


class FeedForward(nn.Module):
    """The position-wise feed-forward network; [..., D] to [..., D]."""

    def __init__(self, config: Seq2SeqConfig, stack: StackConfig) -> None:
        super().__init__()
        self.gated, self.activation = config.gated, ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.d_model, stack.d_ff * (2 if config.gated else 1), bias=config.bias)
        self.down = nn.Linear(stack.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token independently."""
        hidden = self.up(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * hidden
        else:
            hidden = self.activation(hidden)
        transformed: Tensor = self.down(hidden)
        return transformed


class Layer(nn.Module):
    """A layer of the encoder, or one of the decoder, which also attends to the source.

    `mix` computes attention with this layer's projections; how depends on the caller: whole sentences, one token with
    the cache of earlier ones, or operators of an exported graph.
    """

    def __init__(self, config: Seq2SeqConfig, stack: StackConfig, *, crosses: bool) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention = SelfAttention(config, stack)
        self.attention_norm = _norm(config)
        self.cross = CrossAttention(config) if crosses else None
        self.cross_norm = _norm(config) if crosses else nn.Identity()
        self.feed_forward = FeedForward(config, stack)
        self.feed_forward_norm = _norm(config)

    @property
    def source_attention(self) -> CrossAttention:
        """The projections of attention to the source, which a layer of the decoder has."""
        assert self.cross is not None
        return self.cross

    def forward(
        self, x: Tensor, mix: Callable[[Tensor], Tensor], mix_source: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the layer; [..., D] to [..., D].

        Args:
            x: the tokens.
            mix: self-attention, output product included.
            mix_source: attention to the source, output product included.
        """
        parts: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [(self.attention_norm, mix)]
        if mix_source is not None:
            parts.append((self.cross_norm, mix_source))
        parts.append((self.feed_forward_norm, self.feed_forward))
        for norm, part in parts:
            x = x + part(norm(x)) if self.pre_norm else norm(x + part(x))
        return x


class Seq2SeqTransformer(nn.Module):
    """The network; `source_embedding`, `target_embedding` and `output` may share one weight.

    Attributes:
        source_positions_TD: table of positions added to the source; zeros where positions are relative.
        target_positions_TD: the same for the target.
        source_bias_UH: bias on the scores of the encoder by the distance from query to key, which is the row less
            `max_tokens` - 1; [2 max_tokens - 1, H]. Unused without relative positions.
        target_bias_TH: bias in the decoder by the distance from key to query.
        logits_bias_V: added to the logits.
    """

    source_positions_TD: Tensor
    target_positions_TD: Tensor
    source_bias_UH: Tensor
    target_bias_TH: Tensor
    logits_bias_V: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        """Build the network with weights that are to be replaced."""
        super().__init__()
        self.config, D = config, config.d_model
        self.source_embedding = nn.Embedding(config.source_vocab_size, D)
        self.target_embedding = nn.Embedding(config.vocab_size, D)
        self.output = nn.Linear(D, config.vocab_size, bias=False)
        self.encoder = Layers(Layer(config, config.encoder, crosses=False) for _ in range(config.encoder.num_layers))
        self.decoder = Layers(Layer(config, config.decoder, crosses=True) for _ in range(config.decoder.num_layers))
        self.source_embedding_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.target_embedding_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.encoder_norm = _norm(config) if config.final_norm else nn.Identity()
        self.decoder_norm = _norm(config) if config.final_norm else nn.Identity()
        T = config.max_tokens
        for name, shape in (
            ("source_positions_TD", (T, D)),
            ("target_positions_TD", (T, D)),
            ("source_bias_UH", (2 * T - 1, config.encoder.num_heads)),
            ("target_bias_TH", (T, config.decoder.num_heads)),
            ("logits_bias_V", (config.vocab_size,)),
        ):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Compute logits of the next tokens by teacher forcing.

        Args:
            source_ids: int64 [B, S].
            source_mask: int64 [B, S], 1 for a real token and 0 for padding.
            target_ids: int64 [B, T], beginning with the begin token.
            target_mask: int64 [B, T].

        Returns:
            logits for the real target tokens of all sentences, one after another, [N, V].
        """
        memory_BSD = self.encode(source_ids, source_mask)
        bias_B11S, T = padding_bias(source_mask, memory_BSD.dtype), target_ids.size(1)
        bias_TT = torch.full((T, T), NEGATIVE).triu(1)
        if self.config.relative:
            distance_TT = (torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0)
            bias_TT = bias_TT + self.target_bias_TH[distance_TT].permute(2, 0, 1)
        x_BTD = self.embed_target(target_ids, torch.arange(T))
        for layer in self.decoder:
            cross = self.cross_keys_and_values(layer, memory_BSD)
            x_BTD = layer(
                x_BTD,
                partial(_self_attention, layer.attention, bias=bias_TT),
                partial(_cross_attention, layer.source_attention, cross=cross, bias=bias_B11S),
            )
        return self.logits(self.decoder_norm(x_BTD)[target_mask.bool()])

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """Encode the source; [B, S, D]."""
        S = source_ids.size(1)
        x_BSD = self.embed_source(source_ids, torch.arange(S))
        bias = padding_bias(source_mask, x_BSD.dtype)
        if self.config.relative:
            bias = bias + self.source_bias(S)
        for layer in self.encoder:
            x_BSD = layer(x_BSD, partial(_self_attention, layer.attention, bias=bias))
        memory_BSD: Tensor = self.encoder_norm(x_BSD)
        return memory_BSD

    def source_bias(self, tokens: int) -> Tensor:
        """Return the bias on the encoder's scores by distance; [1, H, S, S]."""
        place_S = torch.arange(tokens)
        row_SS = place_S[None, :] - place_S[:, None] + (self.config.max_tokens - 1)
        bias_SSH = self.source_bias_UH.index_select(0, row_SS.flatten()).view(tokens, tokens, -1)
        return bias_SSH.permute(2, 0, 1)[None]

    def embed_source(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed source ids at positions of a shape that broadcasts to theirs; [..., D]."""
        embedded: Tensor = self.source_embedding(ids) * self.config.embedding_scale
        if not self.config.relative:
            embedded = embedded + self.source_positions_TD[positions]
        normed: Tensor = self.source_embedding_norm(embedded)
        return normed

    def embed_target(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed target ids, as `embed_source` does."""
        embedded: Tensor = self.target_embedding(ids) * self.config.embedding_scale
        if not self.config.relative:
            embedded = embedded + self.target_positions_TD[positions]
        normed: Tensor = self.target_embedding_norm(embedded)
        return normed

    def logits(self, x_ND: Tensor) -> Tensor:
        """Project [N, D] to [N, V]."""
        if self.config.output_scale != 1.0:
            x_ND = x_ND * self.config.output_scale
        return functional.linear(x_ND, self.output.weight, self.logits_bias_V)

    def cross_keys_and_values(self, layer: Layer, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Project the source to keys and values of a decoder layer; [B, H, S, K] each."""
        (B, S, _), attention = memory_BSD.shape, layer.source_attention
        both = attention.key_value(memory_BSD).view(B, S, 2, attention.num_heads, self.config.head_width)
        key_BHSK, value_BHSK = both.permute(2, 0, 3, 1, 4).unbind(0)
        return key_BHSK, value_BHSK

    def begin(self, source_ids: Tensor, source_mask: Tensor) -> State:
        """Compute the state of the first step: the source's keys and values for each decoder layer."""
        memory_RSD = self.encode(source_ids, source_mask)
        state, R = {"source_mask": source_mask}, len(source_ids)
        for number, layer in enumerate(self.decoder):
            state[f"cross_key_{number}"], state[f"cross_value_{number}"] = self.cross_keys_and_values(layer, memory_RSD)
            empty = memory_RSD.new_zeros(R, self.config.decoder.num_heads, 0, self.config.head_width)
            state[f"key_{number}"] = state[f"value_{number}"] = empty
        return state

    def step(self, ids_R: Tensor, state: State) -> tuple[Tensor, State]:
        """Decode one more token in each row: logits of the next one, [R, V], and the state with its keys and values."""
        past = state["key_0"].size(2)
        x_R1D = self.embed_target(ids_R[:, None], torch.tensor([past]))
        cross_bias, bias = padding_bias(state["source_mask"], x_R1D.dtype), None
        if self.config.relative:
            bias = self.target_bias_TH[past - torch.arange(past + 1)].T[:, None, :]
        after = dict(state)

        def mix(layer: Layer, number: int, normed_R1D: Tensor) -> Tensor:
            query, key, value = _heads(layer.attention, normed_R1D)
            keys = torch.cat((state[f"key_{number}"], key), dim=2)
            values = torch.cat((state[f"value_{number}"], value), dim=2)
            after[f"key_{number}"], after[f"value_{number}"] = keys, values
            return _mixed(layer.attention, query, keys, values, bias)

        for number, layer in enumerate(self.decoder):
            cross = state[f"cross_key_{number}"], state[f"cross_value_{number}"]
            x_R1D = layer(
                x_R1D,
                partial(mix, layer, number),
                partial(_cross_attention, layer.source_attention, cross=cross, bias=cross_bias),
            )
        return self.logits(self.decoder_norm(x_R1D)[:, 0]), after


def _norm(config: Seq2SeqConfig) -> nn.Module:
    norm = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return norm(config.d_model, eps=config.norm_eps)


def _heads(attention: SelfAttention, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values; [B, H, T, K] each."""
    B, T, _ = x_BTD.shape
    query, key, value = attention.qkv(x_BTD).view(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _mixed(
    attention: SelfAttention | CrossAttention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend, and project the result; [B, T, D]."""
    mixed_BHTK = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    mixed: Tensor = attention.out(mixed_BHTK.transpose(1, 2).flatten(2))
    return mixed


def _self_attention(attention: SelfAttention, x_BTD: Tensor, *, bias: Tensor) -> Tensor:
    return _mixed(attention, *_heads(attention, x_BTD), bias)


def _cross_attention(attention: CrossAttention, x_BTD: Tensor, *, cross: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
    B, T, _ = x_BTD.shape
    query_BHTK = attention.query(x_BTD).view(B, T, attention.num_heads, -1).transpose(1, 2)
    return _mixed(attention, query_BHTK, *cross, bias)
