"""A Transformer encoder for text classification, written out.

Input: token ids and a mask of the real tokens. Output: logits. The layers are those of Vaswani et al. 2017,
"Attention Is All You Need" (arXiv 1706.03762): scaled dot-product attention (section 3.2.1), several heads (3.2.2),
the position-wise network (3.3), sinusoidal positions (3.5). Later improvements are options of
`EncoderConfig`, so that each can be measured alone.

Shapes: B batch, T tokens, D width of the model, H heads, K width of a head, F width of the feed-forward, C classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

NEGATIVE = -1e4  # added to the scores of padding: its weight is exactly 0 after the softmax, in half precision too
# The bias in exported graphs. On a CPU ONNX Runtime's exponential never gives 0 but subnormal numbers, whose products
# are many times slower. e^-50 is a normal number, and negligible in any sum.
HIDDEN = -50.0


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """The shape of a stack of encoder layers."""

    d_model: int = 128
    num_layers: int = 2
    num_heads: int = 4
    d_ff: int = 512
    dropout: float = 0.1
    inner_dropout: bool = True  # also between the two products of the feed-forward network
    max_tokens: int = 256
    # Where the normalisation stands: after the residual sum as in the 2017 paper, or before each sub-layer
    # (Xiong et al. 2020, arXiv 2002.04745: trains without warm-up).
    norm_position: Literal["post", "pre"] = "pre"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467
    norm_eps: float = 1e-5
    activation: Literal["relu", "gelu", "silu", "swiglu"] = "gelu"  # SwiGLU: Shazeer 2020, arXiv 2002.05202
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"  # rotary: Su et al. 2021, arXiv 2104.09864

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ValueError: the width is not a multiple of the heads, or a head has an odd width under rotary positions.
        """
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
        if self.positions == "rotary" and (self.d_model // self.num_heads) % 2:
            raise ValueError("rotary positions need an even head width (d_model / num_heads)")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(LayerConfig):
    """Everything that fixes a text classifier's shape; equal configs have interchangeable weights."""

    vocab_size: int
    num_labels: int
    # Multiply the embeddings by sqrt(d_model), as in the 2017 paper (3.4). Off for weights that were trained without
    # it: if the optimiser's steps have one size for all weights, scaled embeddings learn faster by that factor.
    embedding_scale: bool = True
    embedding_norm: bool = False  # normalise the embeddings before the first layer, as BERT does (arXiv 1810.04805)
    # Factorised embeddings: width of a piece's vector below d_model, followed by a matrix to d_model, so that many
    # pieces take few weights (Lan et al. 2020, ALBERT, arXiv 1909.11942, section 3.1). 0: d_model, and no matrix.
    embedding_width: int = 0
    pooling: Literal["mean", "cls", "max"] = "mean"


L = TypeVar("L", bound=nn.Module)


class Layers(nn.ModuleList, Generic[L]):
    """A list of layers of one type."""

    def __init__(self, layers: Iterable[L]) -> None:
        super().__init__(layers)

    def __iter__(self) -> Iterator[L]:
        layers: Iterator[Any] = super().__iter__()
        return layers


class Dropout(nn.Module):
    """Zeroes a fraction of the values in training and scales up the rest (Srivastava et al. 2014), in 1/256 steps.

    torch's dropout draws each value from one thread's Mersenne twister, a fifth of a training step on a CPU. One byte
    per value from a faster generator, seeded by torch, takes a quarter of that time
    (docs/decisions/export-and-training.md).
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of a tensor of any shape."""
        dropped = round(self.fraction * 256)
        if not self.training or not dropped:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.fraction, training=True)
        seed = int(torch.randint(2**62, ()))
        words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-x.numel() // 8), dtype=np.uint64)
        drawn = torch.from_numpy(words.view(np.uint8)[: x.numel()]).view(x.shape)
        return x * ((drawn >= dropped).to(x.dtype) * (256 / (256 - dropped)))


def sinusoidal_positions(num_positions: int, d_model: int) -> Tensor:
    """Compute the position table of Vaswani et al. 2017, 3.5: sines in even columns, cosines in odd; float32 [T, D]."""
    position_T1 = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1)
    rate_D = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10_000.0) / d_model))
    table_TD = torch.zeros(num_positions, d_model)
    table_TD[:, 0::2] = torch.sin(position_T1 * rate_D)
    table_TD[:, 1::2] = torch.cos(position_T1 * rate_D[: d_model // 2])
    return table_TD


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): rotate each pair of columns by an angle proportional to the position."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK


def scaled_dot_product_attention(
    query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, bias_B11T: Tensor | None
) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, equation 1 of Vaswani et al. 2017; [B, H, T, K].

    Written as two products and a softmax: on a CPU its backward pass in bfloat16 is faster than torch's fused kernel.
    `bias_B11T` is 0 for real tokens and a large negative number for padding; None where nothing is padded.
    """
    scores_BHTT = query_BHTK @ key_BHTK.transpose(-2, -1) / math.sqrt(query_BHTK.size(-1))
    if bias_B11T is not None:
        scores_BHTT = scores_BHTT + bias_B11T
    return torch.softmax(scores_BHTT, dim=-1) @ value_BHTK


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2), with one product for all input projections."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.rotary = config.positions == "rotary"
        if self.rotary:
            head_width = config.d_model // config.num_heads
            table = sinusoidal_positions(config.max_tokens, head_width)
            self.register_buffer("cos_TK", table[:, 1::2].repeat(1, 2), persistent=False)
            self.register_buffer("sin_TK", table[:, 0::2].repeat(1, 2), persistent=False)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor | None = None) -> Tensor:
        """Mix the tokens: [B, T, D] to [B, T, D]."""
        B, T, D = x_BTD.shape
        qkv_BTNHK = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv_BTNHK.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            query = rotate(query, self.cos_TK[:T], self.sin_TK[:T])
            key = rotate(key, self.cos_TK[:T], self.sin_TK[:T])
        mixed_BHTK = scaled_dot_product_attention(query, key, value, bias_B11T)
        mixed_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).reshape(B, T, D))
        return mixed_BTD


class FeedForward(nn.Module):
    """The position-wise feed-forward network (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": functional.relu,
            "gelu": functional.gelu,
            "silu": functional.silu,
            "swiglu": functional.silu,
        }
        self.activation = activations[config.activation]
        self.up = nn.Linear(config.d_model, config.d_ff * (2 if self.gated else 1))
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout if config.inner_dropout else 0.0)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token independently: [B, T, D] to [B, T, D]."""
        hidden = self.up(x_BTD)
        if self.gated:
            gate_BTF, hidden_BTF = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate_BTF) * hidden_BTF
        else:
            hidden = self.activation(hidden)
        transformed_BTD: Tensor = self.down(self.dropout(hidden))
        return transformed_BTD


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a residual sum and a normalisation."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention = MultiHeadAttention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = build_norm(config)
        self.feed_forward_norm = build_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor | None = None) -> Tensor:
        """Compute the layer: [B, T, D] to [B, T, D]."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias_B11T))
            sum_BTD: Tensor = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
            return sum_BTD
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, bias_B11T)))
        normed_BTD: Tensor = self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
        return normed_BTD


def build_norm(config: LayerConfig) -> nn.Module:
    """Build the configured normalisation over the width D."""
    norm = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return norm(config.d_model, eps=config.norm_eps)


class TextClassifier(nn.Module):
    """Token ids to class logits: embedding, positions, encoder layers, pooling over the real tokens, linear head."""

    positions_TD: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_width or config.d_model)
        narrow = bool(config.embedding_width)
        self.widen = nn.Linear(config.embedding_width, config.d_model, bias=False) if narrow else nn.Identity()
        self.embedding_scale = math.sqrt(config.d_model) if config.embedding_scale else 1.0
        if config.positions == "sinusoidal":
            table = sinusoidal_positions(config.max_tokens, config.d_model)
            self.register_buffer("positions_TD", table, persistent=False)
        elif config.positions == "learned":
            self.positions_TD = nn.Parameter(torch.randn(config.max_tokens, config.d_model) * 0.02)
        self.embedding_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.layers = Layers(EncoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.num_labels)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # Scaled by sqrt(D) in forward, so that words and positions start at the same size (2017 paper, 3.4).
            nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify.

        The argument names are those of exported Hugging Face models, so that both kinds of model take the same inputs.

        Args:
            input_ids: int64 [B, T], T at most `max_tokens`.
            attention_mask: int64 [B, T], 1 for a real token and 0 for padding.

        Returns:
            logits, float32 [B, C].
        """
        return self.classify(self.token_vectors(input_ids, attention_mask)[-1], attention_mask)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids, without positions: [...] to [..., D]."""
        embedded: Tensor = self.widen(self.embedding(ids)) * self.embedding_scale
        return embedded

    def token_vectors(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Return the token vectors of each layer, [B, T, D] each; the last one after the final normalisation."""
        bias_B11T = (1.0 - attention_mask[:, None, None, :].to(self.head.weight.dtype)) * NEGATIVE
        x_BTD = self.embed(input_ids)
        if self.config.positions != "rotary":
            x_BTD = x_BTD + self.positions_TD[: input_ids.size(1)]
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        vectors = []
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias_B11T)
            vectors.append(x_BTD)
        return [*vectors[:-1], self.final_norm(x_BTD)]

    def classify(self, x_BTD: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute logits from the last token vectors; [B, T, D] to [B, C]."""
        logits_BC: Tensor = self.head(self.dropout(self._pool(x_BTD, attention_mask)))
        return logits_BC

    def _pool(self, x_BTD: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool the real tokens to one vector per sentence, [B, D]."""
        real_BT1 = attention_mask.unsqueeze(-1).to(x_BTD.dtype)
        if self.config.pooling == "cls":
            return x_BTD[:, 0]
        if self.config.pooling == "max":
            return (x_BTD + (1.0 - real_BT1) * NEGATIVE).amax(dim=1)
        return (x_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1)


class PackedTextClassifier(nn.Module):
    """A text classifier in its exported form: it computes only real tokens, whatever the padding around them.

        ids, mask [B, T] ── real tokens ──> [N, D] ── all layers ──> [N, D] ── put back ──> pooling, head
                                              └─ attention alone sees [B, T, D] ─┘

    Every product with weights works on the N real tokens of the batch, so texts of any length can share a batch at no
    cost. Attention is one operator of ONNX Runtime, `com.microsoft.MultiHeadAttention` (the pattern of products and
    softmax that torch's exporter writes is not recognised by ONNX Runtime's optimizer), or the standard one, by
    `export.onnx_graphs.passes.use_standard_attention`. Outside an export that operator computes nothing, so tests prove
    equality with `TextClassifier` on the exported graph.

    N: real tokens of all rows, one row after another.
    """

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify; arguments and result are those of `TextClassifier.forward`."""
        model, (B, T) = self.model, input_ids.shape
        packing = Packing(attention_mask)
        position_N = packing.real_only(torch.arange(T).expand(B, T))
        x_ND = model.embed(packing.real_only(input_ids))
        if model.config.positions != "rotary":
            x_ND = x_ND + model.positions_TD.index_select(0, position_N)
        x_ND = model.embedding_norm(x_ND)
        for layer in model.layers:
            x_ND = packed_layer(layer, x_ND, packing, position_N)
        logits_BC: Tensor = model.head(model._pool(packing.put_back(model.final_norm(x_ND)), attention_mask))
        return logits_BC


def packed_layer(layer: EncoderLayer, x_ND: Tensor, packing: "Packing", position_N: Tensor) -> Tensor:
    """Compute an encoder layer on real tokens only; [N, D] to [N, D]."""
    if layer.pre_norm:
        x_ND = x_ND + _packed_attention(layer.attention, layer.attention_norm(x_ND), packing, position_N)
        sum_ND: Tensor = x_ND + layer.feed_forward(layer.feed_forward_norm(x_ND))
        return sum_ND
    x_ND = layer.attention_norm(x_ND + _packed_attention(layer.attention, x_ND, packing, position_N))
    normed_ND: Tensor = layer.feed_forward_norm(x_ND + layer.feed_forward(x_ND))
    return normed_ND


def _packed_attention(
    attention: MultiHeadAttention,
    x_ND: Tensor,
    packing: "Packing",
    position_N: Tensor,
) -> Tensor:
    D, H = x_ND.size(1), attention.num_heads
    qkv_N3D = attention.qkv(x_ND)
    if attention.rotary:
        query_ND, key_ND, value_ND = qkv_N3D.chunk(3, dim=-1)
        cos_N1K = attention.cos_TK.index_select(0, position_N).unsqueeze(1)
        sin_N1K = attention.sin_TK.index_select(0, position_N).unsqueeze(1)
        query_ND = rotate(query_ND.view(-1, H, D // H), cos_N1K, sin_N1K).view(-1, D)
        key_ND = rotate(key_ND.view(-1, H, D // H), cos_N1K, sin_N1K).view(-1, D)
        qkv_N3D = torch.cat((query_ND, key_ND, value_ND), dim=-1)
    mixed_BTD = fused_attention(*packing.put_back_parts(qkv_N3D), packing.bias_B1TT, H)
    mixed_ND: Tensor = attention.out(packing.real_only(mixed_BTD))
    return mixed_ND


class Packing:
    """The mapping between a padded batch and its real tokens in one sequence, in both directions."""

    def __init__(self, attention_mask: Tensor) -> None:
        self.shape = attention_mask.shape
        self.bias_B1TT = padding_bias(attention_mask)
        flat = attention_mask.flatten()
        self._place_N = flat.nonzero().squeeze(1)
        # Padding gets the index of the real token before it; any index will do, because the bias hides it.
        self._token = (flat.cumsum(0) - 1).clamp(min=0)

    def real_only(self, x: Tensor) -> Tensor:
        """Select the real tokens: [B, T, ...] to [N, ...]."""
        return x.flatten(0, 1).index_select(0, self._place_N)

    def put_back_parts(self, qkv_N3D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unpack queries, keys and values, [B, T, D] each, from their joint product [N, 3 D] in one step."""
        D = qkv_N3D.size(1) // 3
        parts = qkv_N3D.view(-1, D)
        query, key, value = (parts.index_select(0, 3 * self._token + part).view(*self.shape, D) for part in range(3))
        return query, key, value

    def put_back(self, x_ND: Tensor) -> Tensor:
        """Put real tokens back into the padded batch: [N, D] to [B, T, D]; padded positions are arbitrary."""
        return x_ND.index_select(0, self._token).view(*self.shape, -1)


def padding_bias(attention_mask: Tensor, hidden: float = HIDDEN) -> Tensor:
    """Turn a mask [B, T] into a bias on attention scores that hides padding from every query; [B, 1, T, T]."""
    (B, T), hidden_BT = attention_mask.shape, 1.0 - attention_mask.to(torch.float32)
    return (hidden * hidden_BT)[:, None, None, :].expand(B, 1, T, T)


def fused_attention(query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, bias_B1TT: Tensor, num_heads: int) -> Tensor:
    """The operator of fused attention: scaled dot-product attention with a bias on the scores; [B, T, D]."""
    mixed_BTD: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query_BTD, key_BTD, value_BTD, None, None, bias_B1TT),
        {"num_heads": num_heads},
        dtype=query_BTD.dtype,
        shape=query_BTD.shape,
        version=1,
    )
    return mixed_BTD
