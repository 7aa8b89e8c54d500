"""Distillation: a finished run teaches another one."""

import torch

from export.networks.text_baselines import BiLstmClassifier, BiLstmConfig
from export.networks.transformer import EncoderConfig, TextClassifier
from export.training.distillation import Teacher, directions_of, distance_of_tokens, judge


def test_a_students_targets_are_evenly_spaced_teacher_layers() -> None:
    """A student of two layers gets two of six; targets have size 1 and keep the distances as far as they can."""
    torch.manual_seed(0)
    shape = EncoderConfig(vocab_size=50, num_labels=2, d_model=32, num_layers=6, num_heads=4, d_ff=64, max_tokens=64)
    model = TextClassifier(shape).eval()
    ids_BT, mask_BT = torch.randint(1, 50, (40, 12)), torch.ones(40, 12, dtype=torch.int64)
    mask_BT[:, 9:] = torch.arange(40)[:, None] % 2
    found = directions_of(model, [(ids_BT, mask_BT)], num_layers=2, width=8)
    assert [aim.layer for aim in found] == [2, 5]
    whole = directions_of(model, [(ids_BT, mask_BT)], num_layers=6, width=32)
    assert [aim.layer for aim in whole] == [0, 1, 2, 3, 4, 5]
    vectors_BTD, real_BT = model.token_vectors(ids_BT, mask_BT), mask_BT.bool()
    for directions in (found, whole):
        judgement = judge(Teacher(model, None, {}, directions), ids_BT, mask_BT)  # type: ignore[arg-type]
        torch.testing.assert_close(judgement.logits_BC, model(ids_BT, mask_BT))
        for aim, aimed_BTE in zip(directions, judgement.vectors_BTE, strict=True):
            assert abs(aimed_BTE[real_BT].square().mean().item() - 1) < 1e-3
            if aimed_BTE.size(-1) == 32:  # turned and made larger or smaller as a whole, no more
                before, after = torch.pdist(vectors_BTD[aim.layer][real_BT]), torch.pdist(aimed_BTE[real_BT])
                torch.testing.assert_close(after / after.mean(), before / before.mean(), rtol=1e-3, atol=1e-3)


def test_a_network_of_another_kind_teaches_its_logits() -> None:
    """It has no token vectors by layer."""
    model = BiLstmClassifier(BiLstmConfig(vocab_size=50, num_labels=2)).eval()
    ids_BT, mask_BT = torch.randint(1, 50, (3, 5)), torch.ones(3, 5, dtype=torch.int64)
    judgement = judge(Teacher(model, None, {}, []), ids_BT, mask_BT)  # type: ignore[arg-type]
    torch.testing.assert_close(judgement.logits_BC, model(ids_BT, mask_BT))
    assert judgement.vectors_BTE == []


def test_only_common_tokens_are_compared() -> None:
    """Texts in other pieces, padding, and tokens beyond the shorter of the two do not count."""
    mine, its = torch.zeros(3, 4, 2), torch.zeros(3, 6, 2)
    same_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    mine[1, 2:], mine[2], its[:, 4:] = 7.0, 8.0, 9.0
    assert distance_of_tokens([mine], [its], same_BT).item() == 0
    mine[0, 0, 0] = 6.0
    assert distance_of_tokens([mine, mine], [its, mine], same_BT).item() == 36 / (6 * 2) / 2
    assert distance_of_tokens([mine], [its], torch.zeros_like(same_BT)).item() == 0
