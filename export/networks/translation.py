"""Translation networks: the Transformer of Vaswani et al. 2017, and a recurrent network as its baseline.

    source ids ──> encoder ──> memory ──┐
    target ids, shifted by one ─────────┴──> decoder ──> logits of the next token

Both train on whole sentences (`forward`) and translate token by token (`begin`, `step`), where no step repeats
the work of an earlier one.

Shapes: B sentences, S source tokens, T target tokens, N real target tokens of all sentences, R rows of a decoder step,
P earlier tokens of a row, D width of the model, H heads, K width of a head, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from export.networks.transformer import (
    NEGATIVE,
    Dropout,
    EncoderLayer,
    FeedForward,
    LayerConfig,
    Layers,
    MultiHeadAttention,
    build_norm,
    scaled_dot_product_attention,
    sinusoidal_positions,
)

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
# The state of a decoder, by name; the first dimension of every tensor is the row.
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(LayerConfig):
    """Shape of the Transformer; `num_layers` are the encoder's.

    A deep encoder with a shallow decoder translates as well as evenly divided layers, and faster: the encoder reads
    all tokens at once, the decoder works token by token (Kasai et al. 2021, arXiv 2006.10369).
    """

    vocab_size: int
    num_decoder_layers: int = 2


class TranslationTransformer(nn.Module):
    """Encoder and decoder over one vocabulary; one matrix embeds both languages and predicts the next token."""

    positions_TD: Tensor
    never_V: Tensor

    def __init__(self, config: TranslationConfig) -> None:
        """Raises ValueError: positions other than sinusoidal."""
        super().__init__()
        if config.positions != "sinusoidal":
            raise ValueError(f"positions must be sinusoidal for translation, not {config.positions!r}")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.embedding_scale = math.sqrt(config.d_model)
        table_TD = sinusoidal_positions(config.max_tokens, config.d_model)
        self.register_buffer("positions_TD", table_TD, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.encoder = Layers(EncoderLayer(config) for _ in range(config.num_layers))
        self.encoder_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.decoder = Layers(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.decoder_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        never_V = torch.zeros(config.vocab_size)
        never_V[[PAD_ID, BOS_ID]] = NEGATIVE  # no translation contains them
        self.register_buffer("never_V", never_V, persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Compute logits of the next tokens, [N, V]; arguments and rows are those of `features`."""
        return self.logits(self.features(source_ids, source_mask, target_ids, target_mask))

    def features(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Compute features by teacher forcing: each target token sees the source and the target tokens before it.

        Args:
            source_ids: int64 [B, S], ending with [EOS].
            source_mask: int64 [B, S], 1 for a real token and 0 for padding.
            target_ids: int64 [B, T], beginning with [BOS].
            target_mask: int64 [B, T].

        Returns:
            the inputs of `logits` for the real target tokens of all sentences, one after another, [N, D].
        """
        memory_BSD = self.encode(source_ids, source_mask)
        bias_B11S = padding_bias(source_mask, memory_BSD.dtype)
        T = target_ids.size(1)
        # Padding follows the real tokens, so that the causal mask hides it from them too.
        later_TT = torch.full((T, T), NEGATIVE, device=target_ids.device, dtype=memory_BSD.dtype).triu(1)
        x_BTD = self._embed(target_ids, torch.arange(T, device=target_ids.device))
        for layer in self.decoder:
            x_BTD = layer(x_BTD, later_TT, *layer.cross.keys_and_values(memory_BSD), bias_B11S)
        features_ND: Tensor = self.decoder_norm(x_BTD)[target_mask.bool()]
        return features_ND

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """Encode the source; [B, S, D]."""
        x_BSD = self._embed(source_ids, torch.arange(source_ids.size(1), device=source_ids.device))
        bias_B11S = padding_bias(source_mask, x_BSD.dtype)
        for layer in self.encoder:
            x_BSD = layer(x_BSD, bias_B11S)
        memory_BSD: Tensor = self.encoder_norm(x_BSD)
        return memory_BSD

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.embedding(ids) * self.embedding_scale + self.positions_TD[positions])
        return embedded

    def logits(self, x_ND: Tensor) -> Tensor:
        """Project [N, D] to [N, V] with the tied embedding matrix (Press and Wolf 2017, arXiv 1608.05859)."""
        return nn.functional.linear(x_ND, self.embedding.weight, self.never_V)

    def begin(self, source_ids: Tensor, source_mask: Tensor) -> State:
        """Compute the state of the first step: the source's keys and values for each decoder layer."""
        memory_RSD = self.encode(source_ids, source_mask)
        state = {"source_mask": source_mask}
        R, H, K = len(source_ids), self.config.num_heads, self.config.d_model // self.config.num_heads
        for number, layer in enumerate(self.decoder):
            state[f"cross_key_{number}"], state[f"cross_value_{number}"] = layer.cross.keys_and_values(memory_RSD)
            state[f"key_{number}"] = state[f"value_{number}"] = memory_RSD.new_zeros(R, H, 0, K)
        return state

    def step(self, ids_R: Tensor, state: State) -> tuple[Tensor, State]:
        """Decode one more token in each row: logits of the next one, [R, V], and the state with its keys and values."""
        past = state["key_0"].size(2)
        x_R1D = self._embed(ids_R[:, None], torch.tensor([past], device=ids_R.device))
        bias_R11S = padding_bias(state["source_mask"], x_R1D.dtype)
        after = dict(state)
        for number, layer in enumerate(self.decoder):
            past_key, past_value = state[f"key_{number}"], state[f"value_{number}"]
            cross = state[f"cross_key_{number}"], state[f"cross_value_{number}"]
            x_R1D, after[f"key_{number}"], after[f"value_{number}"] = layer.step(
                x_R1D, past_key, past_value, *cross, bias_R11S
            )
        return self.logits(self.decoder_norm(x_R1D)[:, 0]), after


class CrossAttention(nn.Module):
    """Cross-attention from target tokens to source tokens (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key_value = nn.Linear(config.d_model, 2 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def keys_and_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Project the source to keys and values, once per sentence; [B, H, S, K] each."""
        B, S, D = memory_BSD.shape
        key_value = self.key_value(memory_BSD).view(B, S, 2, self.num_heads, D // self.num_heads)
        key_BHSK, value_BHSK = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        return key_BHSK, value_BHSK

    def forward(self, x_BTD: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias_B11S: Tensor) -> Tensor:
        """Mix the source into the target: [B, T, D] to [B, T, D]."""
        B, T, D = x_BTD.shape
        query_BHTK = self.query(x_BTD).view(B, T, self.num_heads, D // self.num_heads).transpose(1, 2)
        mixed_BHTK = scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, bias_B11S)
        mixed_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).reshape(B, T, D))
        return mixed_BTD


class DecoderLayer(nn.Module):
    """A decoder layer: causal self-attention, cross-attention to the source, feed-forward network."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention = MultiHeadAttention(config)
        self.cross = CrossAttention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = build_norm(config)
        self.cross_norm = build_norm(config)
        self.feed_forward_norm = build_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, later_TT: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias_B11S: Tensor
    ) -> Tensor:
        """Decode all tokens at once under a causal mask: [B, T, D] to [B, T, D]."""
        mixed_BTD = self.attention(self.attention_norm(x_BTD) if self.pre_norm else x_BTD, later_TT)
        return self._rest(x_BTD, mixed_BTD, key_BHSK, value_BHSK, bias_B11S)

    def step(
        self,
        x_R1D: Tensor,
        past_key_RHPK: Tensor,
        past_value_RHPK: Tensor,
        key_RHSK: Tensor,
        value_RHSK: Tensor,
        bias_R11S: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode one token per row; return it and its row's keys and values with its own appended."""
        attention, (R, _, D) = self.attention, x_R1D.shape
        normed_R1D = self.attention_norm(x_R1D) if self.pre_norm else x_R1D
        qkv = attention.qkv(normed_R1D).view(R, 1, 3, attention.num_heads, D // attention.num_heads)
        query_RH1K, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        keys, values = torch.cat((past_key_RHPK, key), dim=2), torch.cat((past_value_RHPK, value), dim=2)
        mixed_RH1K = scaled_dot_product_attention(query_RH1K, keys, values, None)
        mixed_R1D = attention.out(mixed_RH1K.transpose(1, 2).reshape(R, 1, D))
        return self._rest(x_R1D, mixed_R1D, key_RHSK, value_RHSK, bias_R11S), keys, values

    def _rest(
        self, x_BTD: Tensor, mixed_BTD: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias_B11S: Tensor
    ) -> Tensor:
        """Compute the part of the layer after self-attention."""
        cross = key_BHSK, value_BHSK, bias_B11S
        x_BTD = x_BTD + self.dropout(mixed_BTD)
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.cross(self.cross_norm(x_BTD), *cross))
            sum_BTD: Tensor = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
            return sum_BTD
        x_BTD = self.attention_norm(x_BTD)
        x_BTD = self.cross_norm(x_BTD + self.dropout(self.cross(x_BTD, *cross)))
        normed_BTD: Tensor = self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
        return normed_BTD


def padding_bias(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask into a bias on attention scores: 0 for real tokens, `NEGATIVE` for padding; [B, 1, 1, S]."""
    return (1.0 - mask_BS[:, None, None, :].to(dtype)) * NEGATIVE


@dataclass(frozen=True, kw_only=True)
class RecurrentTranslationConfig:
    """Shape of the recurrent network."""

    vocab_size: int
    d_model: int = 256  # width of the embedding and of the decoder's state
    dropout: float = 0.3
    max_tokens: int = 256


class RecurrentTranslator(nn.Module):
    """A bidirectional LSTM encoder and an LSTM decoder with the attention of Luong et al. 2015.

    "Effective Approaches to Attention-based Neural Machine Translation" (arXiv 1508.04025), global attention with the
    general score, without input feeding, so that all target tokens are trained at once.
    """

    never_V: Tensor

    def __init__(self, config: RecurrentTranslationConfig) -> None:
        super().__init__()
        self.config, D = config, config.d_model
        self.embedding = nn.Embedding(config.vocab_size, D)
        nn.init.normal_(self.embedding.weight, std=D**-0.5)
        self.reader = nn.LSTM(D, D // 2, batch_first=True, bidirectional=True)
        self.writer = nn.LSTM(D, D, batch_first=True)
        self.score = nn.Linear(D, D, bias=False)
        self.combine = nn.Linear(2 * D, D)
        self.dropout = Dropout(config.dropout)
        never_V = torch.zeros(config.vocab_size)
        never_V[[PAD_ID, BOS_ID]] = NEGATIVE
        self.register_buffer("never_V", never_V, persistent=False)

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Compute logits of the next tokens; arguments are those of `TranslationTransformer.forward`."""
        return self.logits(self.features(source_ids, source_mask, target_ids, target_mask))

    def features(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Compute decoder outputs by teacher forcing; arguments are those of `TranslationTransformer.features`."""
        state = self.begin(source_ids, source_mask)
        hidden_BTD, _ = self._write(target_ids, state)
        return self._look_back(hidden_BTD, state)[target_mask.bool()]

    def logits(self, x_ND: Tensor) -> Tensor:
        """Project to logits, as `TranslationTransformer.logits` does."""
        return nn.functional.linear(x_ND, self.embedding.weight, self.never_V)

    def begin(self, source_ids: Tensor, source_mask: Tensor) -> State:
        """Encode the source, and compute the decoder's initial state."""
        x_RSD = self.dropout(self.embedding(source_ids) * math.sqrt(self.config.d_model))
        packed = pack_padded_sequence(x_RSD, source_mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        states, (last_2RK, cell_2RK) = self.reader(packed)
        memory_RSD, _ = pad_packed_sequence(states, batch_first=True, total_length=source_ids.size(1))
        return {
            "memory": memory_RSD,
            "source_mask": source_mask,
            "hidden": torch.cat(last_2RK.unbind(0), dim=1),
            "cell": torch.cat(cell_2RK.unbind(0), dim=1),
        }

    def step(self, ids_R: Tensor, state: State) -> tuple[Tensor, State]:
        """Decode one more token in each row, as `TranslationTransformer.step` does."""
        hidden_R1D, after = self._write(ids_R[:, None], state)
        return self.logits(self._look_back(hidden_R1D, state)[:, 0]), after

    def _write(self, ids_RT: Tensor, state: State) -> tuple[Tensor, State]:
        x_RTD = self.dropout(self.embedding(ids_RT) * math.sqrt(self.config.d_model))
        before = state["hidden"][None].contiguous(), state["cell"][None].contiguous()
        hidden_RTD, (last_1RD, cell_1RD) = self.writer(x_RTD, before)
        return hidden_RTD, state | {"hidden": last_1RD[0], "cell": cell_1RD[0]}

    def _look_back(self, hidden_RTD: Tensor, state: State) -> Tensor:
        memory_RSD = state["memory"]
        scores_RTS = self.score(self.dropout(hidden_RTD)) @ memory_RSD.transpose(1, 2)
        scores_RTS = scores_RTS + padding_bias(state["source_mask"], scores_RTS.dtype)[:, 0]
        context_RTD = torch.softmax(scores_RTS, dim=-1) @ memory_RSD
        mixed_RTD = torch.tanh(self.combine(torch.cat((context_RTD, hidden_RTD), dim=-1)))
        dropped_RTD: Tensor = self.dropout(mixed_RTD)
        return dropped_RTD
