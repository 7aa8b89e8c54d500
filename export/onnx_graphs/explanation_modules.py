"""Modules that explain a network: its answer, its attention, and each token's contribution to the answer.

Input: the network's input, the answer to explain, and `alpha`, the position of each token between the baseline (0) and
itself (1). Output: the answer at that point, the attention weights, and one step of integrated gradients
(Sundararajan, Taly and Yan 2017, arXiv 1703.01365): for each token the gradient of the answer there, times the token's
distance from the baseline, summed over its numbers. The mean of the steps over alpha from 0 to 1 is the token's part
of the difference between the answer and the baseline's; all parts add up to that difference, except for the gap that
the steps leave. The steps are rows of a batch, so that they are computed together.

The baseline replaces the tokens' vectors by zeros, which means no word at all; the vector of [PAD] is never trained.
For images it is the tokens of a grey image, which convolutions without biases turn into zeros too. Positions are not
scaled, so the baseline knows the length of the input. Rotary positions are not part of the vectors: the first
normalisation undoes every alpha but 0, and the answer jumps there, which no step sees.

Rows are independent, so the gradient of their sum is each row's own. Padding is computed and masked, because explaining
is not the fast path.

Shapes: B rows, T tokens, S source tokens, D width of the model, H heads, K width of a head, L layers, C classes, V
vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.image import VisionTransformer
from export.networks.transformer import NEGATIVE, EncoderLayer, MultiHeadAttention, TextClassifier, rotate
from export.networks.translation import CrossAttention, DecoderLayer, TranslationTransformer, padding_bias

# Example tensors to trace a network with, and the dynamic axes of each.
Example = tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]
NUM_EXAMPLE_ROWS = 5  # differs from every other size, because tracing unifies equal sizes; channels are always three


class Explained(nn.Module, ABC):
    """A network with its explanation; `inputs` and `outputs` are the names of the graph's tensors."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def example(self) -> Example:
        """Return example tensors of different sizes and their dynamic axes."""


class ExplainedTextClassifier(Explained):
    """A text classifier; `target` is the class whose logit is explained."""

    inputs = ("input_ids", "attention_mask", "target", "alpha")
    outputs = ("logits", "attention", "attribution")

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, target_B: Tensor, alpha_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Explain.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, T], 1 for a real token and 0 for padding.
            target_B: the class to explain of each row, int64.
            alpha_B: float32, 0 for the baseline and 1 for the input.

        Returns:
            logits [B, C], attention weights [B, L, H, T, T] and attributions [B, T]; float32, all at `alpha_B`.
        """
        model, bias_B11T = self.model, padding_bias(attention_mask, alpha_B.dtype)
        embedded_BTD = model.embed(input_ids)

        def answer(x_BTD: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            if model.config.positions != "rotary":
                x_BTD = x_BTD + model.positions_TD[: input_ids.size(1)]
            x_BTD, weights = model.embedding_norm(x_BTD), list[Tensor]()
            for layer in model.layers:
                x_BTD = _layer(layer, x_BTD, bias_B11T, weights)
            logits_BC = model.classify(model.final_norm(x_BTD), attention_mask)
            return _of_class(logits_BC, target_B), (logits_BC, torch.stack(weights, dim=1))

        attribution_BT, (logits_BC, attention_BLHTT) = _step(answer, embedded_BTD, alpha_B)
        return logits_BC, attention_BLHTT, attribution_BT * attention_mask

    def example(self) -> Example:
        """Return rows of 16 tokens."""
        batch, tokens = _batch_and_tokens(self.model.config.max_tokens)
        ids = torch.ones(NUM_EXAMPLE_ROWS, 16, dtype=torch.int64)
        return (ids, ids.clone(), *_example_target_and_alpha()), (tokens, tokens, batch, batch)


class ExplainedVisionTransformer(Explained):
    """A vision transformer; `target` is the class whose logit is explained.

    Tokens are patches, row by row, or what convolutions make of the pixels around their place in the same grid.
    """

    inputs = ("pixel_values", "target", "alpha")
    outputs = ("logits", "attention", "attribution")

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: Tensor, target_B: Tensor, alpha_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Explain normalised pixels, float32; the rest is as in `ExplainedTextClassifier.forward`."""
        model = self.model
        grey_1CHW = pixels_BCHW[:1] * 0.0  # depends on the input, because the exporter would fold a constant
        baseline_1TD = model.tokens(grey_1CHW).flatten(2).transpose(1, 2)
        embedded_BTD = model.tokens(pixels_BCHW).flatten(2).transpose(1, 2)

        def answer(x_BTD: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            x_BTD, weights = x_BTD + model.positions_TD, list[Tensor]()
            for layer in model.layers:
                x_BTD = _layer(layer, x_BTD, None, weights)
            logits_BC = model.classify(model.final_norm(x_BTD))
            return _of_class(logits_BC, target_B), (logits_BC, torch.stack(weights, dim=1))

        attribution_BT, (logits_BC, attention_BLHTT) = _step(answer, embedded_BTD, alpha_B, baseline_1TD)
        return logits_BC, attention_BLHTT, attribution_BT

    def example(self) -> Example:
        """Return images of the network's size."""
        batch, size = {0: torch.export.Dim("batch", min=1)}, self.model.config.image_size
        return (torch.zeros(NUM_EXAMPLE_ROWS, 3, size, size), *_example_target_and_alpha()), (batch,) * 3


class ExplainedTranslation(Explained):
    """A translation model and a translation of its source, all tokens at once (teacher forcing)."""

    inputs = ("source_ids", "source_mask", "target_ids", "target_mask", "alpha")
    outputs = ("log_probabilities", "cross_attention", "encoder_attention", "attribution")

    def __init__(self, model: TranslationTransformer, bos_id: int, output_VD: Tensor | None = None) -> None:
        """Set up.

        Args:
            model: the network.
            bos_id: the first token of the decoder's input.
            output_VD: the output matrix, where it differs from the embedding.
        """
        super().__init__()
        self.model, self.bos_id = model, bos_id
        self.output_VD = model.embedding.weight if output_VD is None else nn.Parameter(output_VD)

    def forward(
        self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor, alpha_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Explain.

        Args:
            source_ids: int64 [B, S], ending with the end of the sentence.
            source_mask: int64 [B, S], 1 for a real token and 0 for padding.
            target_ids: int64 [B, T], the translation as it was written: without the beginning of the sentence, with
                the end where it was reached.
            target_mask: int64 [B, T], 1 for the tokens whose log probabilities, summed, are explained: all real ones,
                or one alone. No token sees those behind it, so that padding needs no mask.
            alpha_B: float32, 0 for the baseline and 1 for the source; the translation is never scaled.

        Returns:
            Log probabilities of the target tokens [B, T], 0 where the mask is 0, the weights of the attention to the
            source [B, L, H, T, S], a row for what was written (its query is the token before), those of the encoder
            [B, L, H, S, S], and attributions of the source tokens [B, S]; float32, all at `alpha_B`.
        """
        model, T = self.model, target_ids.size(1)
        bias_B11S = padding_bias(source_mask, alpha_B.dtype)
        later_TT = torch.full((T, T), NEGATIVE).triu(1)
        given_BT = torch.cat((torch.full_like(target_ids[:, :1], self.bos_id), target_ids[:, :-1]), dim=1)
        written_BTD = model.embedding(given_BT) * model.embedding_scale + model.positions_TD[:T]
        embedded_BSD = model.embedding(source_ids) * model.embedding_scale

        def answer(x_BSD: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            x_BSD, weights, cross_weights = x_BSD + model.positions_TD[: x_BSD.size(1)], list[Tensor](), list[Tensor]()
            for layer in model.encoder:
                x_BSD = _layer(layer, x_BSD, bias_B11S, weights)
            memory_BSD, x_BTD = model.encoder_norm(x_BSD), written_BTD
            for decoder_layer in model.decoder:
                x_BTD = _decoder_layer(decoder_layer, x_BTD, later_TT, memory_BSD, bias_B11S, cross_weights)
            logits_BTV = nn.functional.linear(model.decoder_norm(x_BTD), self.output_VD, model.never_V)
            log_probability_BTV = torch.log_softmax(logits_BTV, dim=-1)
            written_BT = log_probability_BTV.gather(-1, target_ids[..., None])[..., 0] * target_mask
            return written_BT.sum(), (written_BT, torch.stack(cross_weights, dim=1), torch.stack(weights, dim=1))

        attribution_BS, (written_BT, cross_BLHTS, attention_BLHSS) = _step(answer, embedded_BSD, alpha_B)
        return written_BT, cross_BLHTS, attention_BLHSS, attribution_BS * source_mask

    def example(self) -> Example:
        """Return sources of 16 tokens with translations of 11."""
        most = self.model.config.max_tokens
        batch, tokens = _batch_and_tokens(most)
        target_tokens = batch | {1: torch.export.Dim("target_tokens", min=1, max=most)}
        ids, written = (torch.ones(NUM_EXAMPLE_ROWS, count, dtype=torch.int64) for count in (16, 11))
        _, alpha_B = _example_target_and_alpha()
        axes = (tokens, tokens, target_tokens, target_tokens, batch)
        return (ids, ids.clone(), written, written.clone(), alpha_B), axes


def _batch_and_tokens(max_tokens: int) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the dynamic axes of a tensor of rows, and of one of rows and tokens."""
    batch = {0: torch.export.Dim("batch", min=1)}
    return batch, batch | {1: torch.export.Dim("tokens", min=1, max=max_tokens)}


def _example_target_and_alpha() -> tuple[Tensor, Tensor]:
    return torch.zeros(NUM_EXAMPLE_ROWS, dtype=torch.int64), torch.full((NUM_EXAMPLE_ROWS,), 0.5)


def _step(
    answer: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]],
    embedded_BTD: Tensor,
    alpha_B: Tensor,
    baseline_1TD: Tensor | float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute attributions at one alpha of integrated gradients, [B, T], and the other outputs of `answer`."""
    distance_BTD = embedded_BTD - baseline_1TD
    at_alpha_BTD = baseline_1TD + alpha_B[:, None, None] * distance_BTD
    with torch.enable_grad():
        at_alpha_BTD = at_alpha_BTD.detach().requires_grad_()
        total, outputs = answer(at_alpha_BTD)
        (gradient_BTD,) = torch.autograd.grad(total, at_alpha_BTD)
    return (gradient_BTD * distance_BTD).sum(dim=-1), outputs


def _of_class(logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """Sum each row's target logit, by a product with a one-hot mask: the gradient of indexing would be a scatter."""
    classes_C = torch.arange(logits_BC.size(1))
    return (logits_BC * (classes_C == target_B[:, None])).sum()


def _attend(
    query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias: Tensor | None, weights: list[Tensor]
) -> Tensor:
    """Compute attention, [B, T, D], and record its weights."""
    scores_BHTS = query_BHTK @ key_BHSK.transpose(-2, -1) / math.sqrt(query_BHTK.size(-1))
    weights.append(torch.softmax(scores_BHTS if bias is None else scores_BHTS + bias, dim=-1))
    return (weights[-1] @ value_BHSK).transpose(1, 2).flatten(2)


def _self_attention(attention: MultiHeadAttention, x_BTD: Tensor, bias: Tensor | None, weights: list[Tensor]) -> Tensor:
    B, T, D = x_BTD.shape
    qkv_BTNHK = attention.qkv(x_BTD).view(B, T, 3, attention.num_heads, D // attention.num_heads)
    query, key, value = qkv_BTNHK.permute(2, 0, 3, 1, 4).unbind(0)
    if attention.rotary:
        query = rotate(query, attention.cos_TK[:T], attention.sin_TK[:T])
        key = rotate(key, attention.cos_TK[:T], attention.sin_TK[:T])
    mixed_BTD: Tensor = attention.out(_attend(query, key, value, bias, weights))
    return mixed_BTD


def _layer(layer: EncoderLayer, x_BTD: Tensor, bias_B11T: Tensor | None, weights: list[Tensor]) -> Tensor:
    """Compute an encoder layer; [B, T, D] to [B, T, D]."""
    if layer.pre_norm:
        x_BTD = x_BTD + _self_attention(layer.attention, layer.attention_norm(x_BTD), bias_B11T, weights)
        sum_BTD: Tensor = x_BTD + layer.feed_forward(layer.feed_forward_norm(x_BTD))
        return sum_BTD
    x_BTD = layer.attention_norm(x_BTD + _self_attention(layer.attention, x_BTD, bias_B11T, weights))
    normed_BTD: Tensor = layer.feed_forward_norm(x_BTD + layer.feed_forward(x_BTD))
    return normed_BTD


def _cross_attention(
    cross: CrossAttention, x_BTD: Tensor, memory_BSD: Tensor, bias_B11S: Tensor, weights: list[Tensor]
) -> Tensor:
    B, T, D = x_BTD.shape
    query_BHTK = cross.query(x_BTD).view(B, T, cross.num_heads, D // cross.num_heads).transpose(1, 2)
    mixed_BTD: Tensor = cross.out(_attend(query_BHTK, *cross.keys_and_values(memory_BSD), bias_B11S, weights))
    return mixed_BTD


def _decoder_layer(
    layer: DecoderLayer,
    x_BTD: Tensor,
    later_TT: Tensor,
    memory_BSD: Tensor,
    bias_B11S: Tensor,
    cross_weights: list[Tensor],
) -> Tensor:
    """Compute a decoder layer, and record its cross-attention; [B, T, D] to [B, T, D]."""
    to_source = memory_BSD, bias_B11S, cross_weights
    if layer.pre_norm:
        x_BTD = x_BTD + _self_attention(layer.attention, layer.attention_norm(x_BTD), later_TT, [])
        x_BTD = x_BTD + _cross_attention(layer.cross, layer.cross_norm(x_BTD), *to_source)
        sum_BTD: Tensor = x_BTD + layer.feed_forward(layer.feed_forward_norm(x_BTD))
        return sum_BTD
    x_BTD = layer.attention_norm(x_BTD + _self_attention(layer.attention, x_BTD, later_TT, []))
    x_BTD = layer.cross_norm(x_BTD + _cross_attention(layer.cross, x_BTD, *to_source))
    normed_BTD: Tensor = layer.feed_forward_norm(x_BTD + layer.feed_forward(x_BTD))
    return normed_BTD
