"""The losses against their formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from train.compress import hint_loss
from train.losses import AngularMarginSoftmax, distillation_loss, pair_loss, target_loss

torch.set_num_threads(1)


def number(tensor):
    return tensor.detach().item()


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def by_angles(embeddings, weight, labels, margin, scale):
    """AAM-softmax as the paper writes it: the target's angle grows by the margin."""
    total = 0.0
    for row, label in zip(embeddings, labels, strict=True):
        cosines = functional.cosine_similarity(row[None], weight)
        logits = scale * cosines
        logits[label] = scale * torch.cos(torch.acos(cosines[label]) + margin)
        total += -torch.log_softmax(logits, 0)[label]
    return total / len(labels)


@given(st.integers(0, 1000), st.floats(0.0, 0.5))
@settings(max_examples=30, deadline=None)
def test_margin_softmax_equals_the_paper_while_the_angle_stays_below_pi(seed, margin):
    embeddings, centres = draws(seed, 5, 8), draws(seed + 1, 7, 8)
    labels = torch.arange(5)
    cosines = functional.cosine_similarity(embeddings, centres[:5])
    softmax = AngularMarginSoftmax(centres, scale=30.0)
    if (cosines > math.cos(math.pi - margin) + 1e-3).all():
        expected = by_angles(embeddings, centres, labels, margin, 30.0)
        assert number(softmax(embeddings, labels, margin)) == pytest.approx(number(expected), rel=1e-4, abs=1e-4)


def test_without_a_margin_it_is_softmax_over_cosines():
    embeddings, centres, labels = draws(0, 4, 8), draws(1, 6, 8), torch.tensor([0, 5, 2, 2])
    cosines = functional.normalize(embeddings) @ functional.normalize(centres).T
    expected = functional.cross_entropy(32.0 * cosines, labels)
    assert number(AngularMarginSoftmax(centres)(embeddings, labels, 0.0)) == pytest.approx(number(expected), rel=1e-5)


def test_a_margin_makes_the_target_harder_up_to_the_opposite_direction():
    """The moved cosine falls monotonically with the angle, so that no embedding gains by turning away."""
    centre = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    softmax = AngularMarginSoftmax(centre, scale=1.0)
    angles = torch.linspace(0.0, math.pi, 60)
    losses = []
    for angle in angles:
        embedding = torch.tensor([[math.cos(angle), -math.sin(angle)]])
        cosine = number(functional.normalize(embedding)[0] @ centre[1])
        loss = number(softmax(embedding, torch.tensor([0]), 0.4))
        losses.append(-math.log(math.exp(loss) - 1) + cosine)  # the target's moved logit
    assert all(b < a + 1e-4 for a, b in itertools.pairwise(losses))
    with_margin, without = softmax(centre, torch.tensor([0, 1]), 0.4), softmax(centre, torch.tensor([0, 1]), 0.0)
    assert with_margin > without


def test_clips_without_a_speaker_are_left_out_of_the_softmax():
    embeddings, centres = draws(0, 4, 8), draws(1, 6, 8)
    softmax = AngularMarginSoftmax(centres)
    some = softmax(embeddings, torch.tensor([3, -1, 2, -1]), 0.2)
    assert number(some) == pytest.approx(number(softmax(embeddings[[0, 2]], torch.tensor([3, 2]), 0.2)))
    embeddings.requires_grad_()
    nobody = softmax(embeddings, torch.full((4,), -1), 0.2)
    nobody.backward()
    assert number(nobody) == 0.0 and not embeddings.grad.any()


def test_gradients_are_finite_at_the_very_direction_of_the_class_and_opposite_to_it():
    centres = torch.eye(3)
    for sign in (1.0, -1.0):
        embeddings = (sign * torch.eye(3)).requires_grad_()
        AngularMarginSoftmax(centres)(embeddings, torch.arange(3), 0.3).backward()
        assert torch.isfinite(embeddings.grad).all()


def test_classes_start_at_the_given_centres():
    centres = 5.0 * draws(0, 4, 8)
    assert torch.allclose(AngularMarginSoftmax(centres).weight, functional.normalize(centres))


def test_pair_loss_is_zero_for_one_direction_one_for_right_angles_two_for_opposites():
    a = draws(0, 3, 8)
    assert number(pair_loss(a, 7 * a)) == pytest.approx(0.0, abs=1e-6)
    assert number(pair_loss(a, -a)) == pytest.approx(2.0, abs=1e-6)
    assert number(pair_loss(torch.eye(2), torch.eye(2).flip(0))) == pytest.approx(1.0)
    assert number(pair_loss(a, draws(1, 3, 8))) == pytest.approx(number(pair_loss(draws(1, 3, 8), a)))


def test_target_loss_is_the_weighted_mean_and_a_weight_of_zero_takes_a_row_out():
    e, t = draws(0, 3, 8), draws(1, 3, 8)
    each = 1 - functional.cosine_similarity(e, t)
    assert number(target_loss(e, t, torch.ones(3))) == pytest.approx(number(each.mean()), rel=1e-5)
    weighted = target_loss(e, t, torch.tensor([1.0, 0.0, 3.0]))
    assert number(weighted) == pytest.approx(number((each[0] + 3 * each[2]) / 4))
    assert number(target_loss(e, t, torch.zeros(3))) == 0.0


def test_losses_are_computed_in_float32_under_half_precision():
    e, t = draws(0, 3, 8).bfloat16(), draws(1, 3, 8).bfloat16()
    assert pair_loss(e, t).dtype == torch.float32 and target_loss(e, t, torch.ones(3)).dtype == torch.float32


def test_distillation_is_zero_for_the_teacher_itself_and_blind_to_the_norm():
    teacher = draws(0, 6, 8)
    assert number(distillation_loss(3 * teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    assert number(distillation_loss(draws(1, 6, 8), teacher)) > 0.5


def test_hints_are_zero_for_the_same_activations():
    x = draws(0, 2, 4, 6, 8)
    assert number(hint_loss(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert number(hint_loss(draws(1, 2, 4, 6, 8), x)) > 0.1
