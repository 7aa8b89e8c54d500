"""Distillation: a finished run teaches another one by its logits and token vectors.

The student's targets are the teacher's logits (Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT", arXiv
1903.12136, equation 3) and, optionally, the teacher's token vectors, layer by layer (Jiao et al.
2020, TinyBERT, arXiv 1909.10351, equation 8). There a student of fewer dimensions learns a matrix to the teacher's
dimensions; here the targets are the teacher's first principal components, as many as the student has dimensions, so
that no weights are thrown away afterwards.

Shapes: B texts, T tokens, C classes, D width of the teacher, E width of the student, N tokens of many texts.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.networks.transformer import TextClassifier


class Directions(NamedTuple):
    """The target of a student's layer: a teacher's layer, projected to fewer dimensions and normalised."""

    layer: int
    mean_D: Tensor
    directions_DE: Tensor


class Teacher(NamedTuple):
    """A teacher network, ready to label texts."""

    model: Any  # a `TextClassifier` if the student learns token vectors
    tokenizer: Tokenizer
    neighbours: dict[str, list[str]]  # neighbours of the training words, if words are replaced
    directions: list[Directions]  # one per layer of the student, if it learns token vectors


class Judgement(NamedTuple):
    """A teacher's logits and target vectors for a batch of texts."""

    logits_BC: Tensor
    vectors_BTE: list[Tensor]  # the target of each layer of the student


@torch.no_grad()
def judge(teacher: Teacher, ids_BT: Tensor, mask_BT: Tensor) -> Judgement:
    """Compute the teacher's logits and target vectors, in the precision of the caller's autocast."""
    if not teacher.directions:  # any kind of network
        return Judgement(teacher.model(ids_BT, mask_BT).float(), [])
    vectors_BTD = teacher.model.token_vectors(ids_BT, mask_BT)
    logits_BC = teacher.model.classify(vectors_BTD[-1], mask_BT).float()
    aims = [(vectors_BTD[layer].float() - mean_D) @ towards_DE for layer, mean_D, towards_DE in teacher.directions]
    return Judgement(logits_BC, aims)


@torch.no_grad()
def directions_of(
    model: TextClassifier, batches: Iterable[tuple[Tensor, Tensor]], num_layers: int, width: int
) -> list[Directions]:
    """Compute each student layer's target: evenly spaced layers of the teacher, the last for the last.

    Args:
        model: the teacher.
        batches: ids and masks of texts whose tokens determine the directions.
        num_layers: layers of the student.
        width: width of the student, at most the teacher's.
    """
    layers = [(number + 1) * len(model.layers) // num_layers - 1 for number in range(num_layers)]
    seen: list[list[Tensor]] = [[] for _ in layers]
    for ids_BT, mask_BT in batches:
        vectors_BTD = model.token_vectors(ids_BT, mask_BT)
        for vectors_ND, layer in zip(seen, layers, strict=True):
            vectors_ND.append(vectors_BTD[layer][mask_BT.bool()])
    return [_directions(layer, torch.cat(vectors_ND), width) for layer, vectors_ND in zip(layers, seen, strict=True)]


def _directions(layer: int, vectors_ND: Tensor, width: int) -> Directions:
    mean_D = vectors_ND.mean(0)
    centred_ND = vectors_ND - mean_D
    _, _, found_DD = torch.linalg.svd(centred_ND.T @ centred_ND)  # of a symmetric matrix: its principal directions
    towards_DE = found_DD[:width].T
    size = (centred_ND @ towards_DE).square().mean().sqrt()
    return Directions(layer, mean_D, towards_DE / size)


def distance_of_tokens(student_BTE: Sequence[Tensor], teacher_BTE: Sequence[Tensor], same_BT: Tensor) -> Tensor:
    """Compute the mean squared distance of token vectors over all layers; 0-dim.

    `same_BT` is 1 for tokens that both have; tokens beyond the shorter of the two are not compared.
    """
    T = min(same_BT.size(1), student_BTE[0].size(1), teacher_BTE[0].size(1))
    weight_BT1 = same_BT[:, :T, None].float()
    count = (weight_BT1.sum() * student_BTE[0].size(2)).clamp(min=1)
    distances = [
        ((mine[:, :T].float() - its[:, :T]).square() * weight_BT1).sum() / count
        for mine, its in zip(student_BTE, teacher_BTE, strict=True)
    ]
    return torch.stack(distances).mean()
