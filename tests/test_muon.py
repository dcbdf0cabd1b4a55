"""Muon for convolutions: it trains the kernels themselves, and a stopped run goes on as if it had not."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.training import tiny_encoder
from train.muon import MuonAdamW


def ready(seed=0):
    return tiny_encoder(seed).to(memory_format=torch.channels_last).train()


def loss_of(encoder, step=0):
    features = torch.randn(4, 48, 80, generator=torch.Generator().manual_seed(step))
    return (encoder(features) - 1.0).square().mean()


def take_steps(encoder, optimizer, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(encoder, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_every_weight_moves_and_the_loss_falls():
    encoder = ready()
    before = copy.deepcopy(encoder.state_dict())
    optimizer = MuonAdamW(encoder, 0.01, 0.01)
    take_steps(encoder, optimizer, range(30))
    assert loss_of(encoder, 99) < 0.5 * loss_of(tiny_encoder(), 99)
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"mean_vector"}


def test_the_step_of_a_kernel_is_orthogonal_whatever_the_size_of_its_gradient():
    encoder = ready()
    kernel = encoder.stages[2][0].conv2.weight
    for scale in (1e-3, 1e3):
        before = kernel.detach().clone()
        optimizer = MuonAdamW(encoder, 0.01, 0.01, weight_decay=0.0)
        optimizer.zero_grad()
        (scale * loss_of(encoder)).backward()
        optimizer.step()
        singular = torch.linalg.svdvals((kernel.detach() - before).flatten(1))
        moved = singular[singular > 1e-5 * singular.max()]  # channels that are always 0 have no gradient
        assert len(moved) > 3 and moved.min() > 0.4 * moved.max()


def test_the_rates_of_all_groups_can_be_set():
    encoder = ready()
    before = copy.deepcopy(encoder.state_dict())
    optimizer = MuonAdamW(encoder, 0.01, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    loss_of(encoder).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_run_that_was_stopped_goes_on_with_the_same_losses():
    whole = ready()
    losses = take_steps(whole, MuonAdamW(whole, 0.01, 0.01), range(8))
    first = ready()
    optimizer = MuonAdamW(first, 0.01, 0.01)
    begun = take_steps(first, optimizer, range(4))
    second = ready(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = MuonAdamW(second, 0.01, 0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert begun + take_steps(second, resumed, range(4, 8)) == pytest.approx(losses, rel=1e-5)


def test_kernels_that_are_not_stored_channels_last_are_refused():
    with pytest.raises(ValueError, match="expected kernels in channels-last order"):
        MuonAdamW(tiny_encoder(), 0.01, 0.01)
