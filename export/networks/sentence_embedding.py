"""The layers that make one vector of a text from the vectors of its tokens, as sentence-transformers arranges them.

Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084), section 3: an encoder, pooling, optional dense layers.

Shapes: B rows, T tokens, D elements of a token's vector, E elements of a text's vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MIN_TOKENS = 1e-9  # keeps a row without real tokens from a division by zero


def pooled(name: str, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Pool the vectors of the real tokens in one of the ways of `POOLINGS`; [B, D]."""
    return POOLINGS[name](x_BTD, mask_BT.unsqueeze(-1).to(x_BTD.dtype))


def _mean(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    return (x_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=MIN_TOKENS)


def _mean_sqrt_len(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    return (x_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=MIN_TOKENS).sqrt()


def _cls(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    return x_BTD[:, 0]


def _max(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    return torch.where(real_BT1 > 0, x_BTD, torch.finfo(x_BTD.dtype).min).amax(1)


def _weighted_mean(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    weights_T1 = torch.arange(1, x_BTD.shape[1] + 1, dtype=x_BTD.dtype)[:, None]
    return _mean(x_BTD, real_BT1 * weights_T1)


def _last_token(x_BTD: Tensor, real_BT1: Tensor) -> Tensor:
    # The rows are padded on the right.
    last_B11 = (real_BT1.sum(1, keepdim=True) - 1).clamp(min=0).to(torch.int64)
    return x_BTD.gather(1, last_B11.expand(-1, 1, x_BTD.shape[-1])).squeeze(1)


# By the names of sentence-transformers (`pooling_mode_<name>` in the configuration of its layer).
POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_tokens": _mean,
    "cls_token": _cls,
    "max_tokens": _max,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean_tokens": _weighted_mean,
    "lasttoken": _last_token,
}


class SentenceEmbedding(nn.Module):
    """Token ids to one vector a text: encoder, pooling, dense layers."""

    def __init__(self, encoder: Any, poolings: Sequence[str], dense: Sequence[nn.Module] = ()) -> None:
        """Put the layers together.

        Args:
            encoder: a model of `transformers`, whose output has `last_hidden_state`, [B, T, D].
            poolings: names of `POOLINGS`; the vectors of several are put one behind the other.
            dense: layers from one vector to the next.
        """
        super().__init__()
        self.encoder, self.poolings, self.dense = encoder, tuple(poolings), nn.Sequential(*dense)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Embed texts, int64 [B, T] each; return vectors, float32 [B, E], that are not normalised."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        x_BTD = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        vectors_BE: Tensor = self.dense(torch.cat([pooled(name, x_BTD, attention_mask) for name in self.poolings], -1))
        return vectors_BE
