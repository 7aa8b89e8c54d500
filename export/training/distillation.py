"""A finished run that teaches another one: what it says of texts, and what it makes of their tokens.

The student's aim is the teacher's logits (Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT", arXiv
1903.12136, equation 3) and, where that is wanted, the teacher's vectors of the tokens, layer by layer (Jiao et al.
2020, TinyBERT, arXiv 1909.10351, equation 8). There a student of fewer dimensions learns a matrix that leads from its
own to the teacher's; here it is given the directions in which the teacher's vectors differ most, as many as it has
dimensions: no weights that are thrown away afterwards.

Shapes: B texts, T tokens, C classes, D width of the teacher, E width of the student, N tokens of many texts.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.networks.transformer import TextClassifier


class Directions(NamedTuple):
    """What a student's layer aims at: a layer of the teacher, in fewer dimensions and of size 1."""

    layer: int
    mean_D: Tensor
    directions_DE: Tensor


class Teacher(NamedTuple):
    """The run, ready to judge."""

    model: Any  # a `TextClassifier`, where the student learns the tokens' vectors
    tokenizer: Tokenizer
    neighbours: dict[str, list[str]]  # of the words of the training texts, where any are replaced
    directions: list[Directions]  # one for each layer of the student, where it learns the tokens' vectors


class Judgement(NamedTuple):
    """What a teacher says of a batch of texts."""

    logits_BC: Tensor
    vectors_BTE: list[Tensor]  # what each layer of the student aims at


@torch.no_grad()
def judge(teacher: Teacher, ids_BT: Tensor, mask_BT: Tensor) -> Judgement:
    """Logits and aims, in the precision that the caller's context sets."""
    if not teacher.directions:  # a network of any kind
        return Judgement(teacher.model(ids_BT, mask_BT).float(), [])
    vectors_BTD = teacher.model.token_vectors(ids_BT, mask_BT)
    logits_BC = teacher.model.classify(vectors_BTD[-1], mask_BT).float()
    aims = [(vectors_BTD[layer].float() - mean_D) @ towards_DE for layer, mean_D, towards_DE in teacher.directions]
    return Judgement(logits_BC, aims)


@torch.no_grad()
def directions_of(
    model: TextClassifier, batches: Iterable[tuple[Tensor, Tensor]], num_layers: int, width: int
) -> list[Directions]:
    """For each of a student's layers, what it aims at: layers of the teacher at even distances, the last for the last.

    Args:
        model: the teacher.
        batches: ids and mask of texts, by whose tokens the directions are found.
        num_layers: of the student.
        width: of the student, at most the teacher's.
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
    """The mean squared distance of the tokens' vectors over all layers; 0-dim.

    `same_BT` is 1 for the tokens that both have; what is beyond the shorter of the two is not compared.
    """
    T = min(same_BT.size(1), student_BTE[0].size(1), teacher_BTE[0].size(1))
    weight_BT1 = same_BT[:, :T, None].float()
    count = (weight_BT1.sum() * student_BTE[0].size(2)).clamp(min=1)
    distances = [
        ((mine[:, :T].float() - its[:, :T]).square() * weight_BT1).sum() / count
        for mine, its in zip(student_BTE, teacher_BTE, strict=True)
    ]
    return torch.stack(distances).mean()
