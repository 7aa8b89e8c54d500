"""Masked language models that compute the vocabulary's logits of one token of each row.

Shapes: B rows, T tokens, D elements of a token's vector, V tokens of the vocabulary.
"""

from copy import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput


class _GivenVectors(nn.Module):
    """Stands in the place of an encoder: its output is the vectors that it is given."""

    def forward(self, input_ids: Any = None, *, inputs_embeds: Tensor, **_: Any) -> BaseModelOutput:
        """Return the vectors, [B, T, D]."""
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MarkedTokenLogits(nn.Module):
    """A masked language model of `transformers` whose head computes one token of each row."""

    def __init__(self, model: Any) -> None:
        """Take a model apart into its encoder and its head, which keep their weights."""
        super().__init__()
        self.encoder = model.base_model
        head = copy(model)
        head._modules = {**model._modules, model.base_model_prefix: _GivenVectors()}
        self.head = head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, types_or_marks: Tensor, marks: Tensor | None = None
    ) -> Tensor:
        """Compute logits, [B, V].

        Args:
            input_ids: int64 [B, T].
            attention_mask: 1 for real tokens, int64 [B, T].
            types_or_marks: token types, int64 [B, T], where the encoder takes them; else the marks.
            marks: 1 at the token that is asked for, int64 [B, T].
        """
        given = {} if marks is None else {"token_type_ids": types_or_marks}
        marks_BT = types_or_marks if marks is None else marks
        x_BTD = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        x_B1D = (x_BTD * marks_BT.unsqueeze(-1).to(x_BTD.dtype)).sum(1, keepdim=True)
        logits_BV: Tensor = self.head(inputs_embeds=x_B1D).logits[:, 0]
        return logits_BV
