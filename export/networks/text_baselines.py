"""Baselines for the Transformer: recurrent and convolutional text classifiers on the same tokens.

Their inputs and outputs are those of `export.networks.transformer.TextClassifier`; padding does not affect them.

Shapes: B batch, T tokens, D width of the embedding, H width of the recurrent state, F filters, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NEGATIVE = -1e4  # below every activation, so that padding never is the maximum


@dataclass(frozen=True, kw_only=True)
class BiLstmConfig:
    """Shape of a bidirectional LSTM (Hochreiter and Schmidhuber 1997; Schuster and Paliwal 1997)."""

    vocab_size: int
    num_labels: int
    d_embedding: int = 128
    d_hidden: int = 128  # in each direction
    num_layers: int = 1
    dropout: float = 0.5
    max_tokens: int = 256


class BiLstmClassifier(nn.Module):
    """Embedding, LSTM in both directions, maximum over the tokens, linear head."""

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_embedding)
        self.lstm = nn.LSTM(
            config.d_embedding, config.d_hidden, config.num_layers, batch_first=True, bidirectional=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.d_hidden, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify ids and mask, int64 [B, T], real tokens first; return logits [B, C]."""
        x_BTD = self.dropout(self.embedding(input_ids))
        lengths_B = attention_mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(x_BTD, lengths_B, batch_first=True, enforce_sorted=False)
        states_BTH, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.size(1))
        hidden_BTH = states_BTH + (1.0 - attention_mask[..., None].to(states_BTH.dtype)) * NEGATIVE
        logits_BC: Tensor = self.head(self.dropout(hidden_BTH.amax(dim=1)))
        return logits_BC


@dataclass(frozen=True, kw_only=True)
class KimCnnConfig:
    """Shape of Kim 2014, "Convolutional Neural Networks for Sentence Classification" (arXiv 1408.5882)."""

    vocab_size: int
    num_labels: int
    d_embedding: int = 128
    num_filters: int = 100  # of each width
    widths: tuple[int, ...] = (3, 4, 5)
    dropout: float = 0.5
    max_tokens: int = 256


class KimCnnClassifier(nn.Module):
    """Embedding, filters of several widths, maximum of each over the sentence, linear head."""

    def __init__(self, config: KimCnnConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_embedding)
        self.filters = nn.ModuleList(
            nn.Conv1d(config.d_embedding, config.num_filters, width) for width in config.widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(len(config.widths) * config.num_filters, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask, int64 [B, T], real tokens first; logits [B, C].

        A sentence shorter than a filter is padded with zeros, as in the paper.
        """
        x_BTD = self.embedding(input_ids) * attention_mask[..., None]
        x_BDT = nn.functional.pad(x_BTD, (0, 0, 0, max(self.config.widths) - 1)).transpose(1, 2)
        lengths_B1 = attention_mask.sum(dim=1, keepdim=True)
        pooled = []
        for width, convolution in zip(self.config.widths, self.filters, strict=True):
            activation_BFT = torch.relu(convolution(x_BDT))
            place_T = torch.arange(activation_BFT.size(2), device=input_ids.device)
            inside_BT = place_T < (lengths_B1 - width + 1).clamp(min=1)
            pooled.append(activation_BFT.masked_fill(~inside_BT[:, None], NEGATIVE).amax(dim=2))
        logits_BC: Tensor = self.head(self.dropout(torch.cat(pooled, dim=1)))
        return logits_BC
