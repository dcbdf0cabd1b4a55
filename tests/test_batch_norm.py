"""Batch norm that comes for the training and goes with it: the encoder computes the same before, with, and after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.training import tiny_encoder
from train.batch_norm import folded, insert_batch_norm


def features(seed=0, batch=6, frames=64):
    return torch.randn(batch, frames, 80, generator=torch.Generator().manual_seed(seed))


def norms(encoder):
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]


def test_inserting_norms_changes_nothing_for_the_batch_that_they_start_from():
    plain = tiny_encoder()
    normed = insert_batch_norm(copy.deepcopy(plain), features())
    with torch.no_grad():
        assert torch.allclose(normed.eval()(features()), plain(features()), atol=1e-4)
        assert torch.allclose(normed.train()(features()), plain(features()), atol=1e-3)
    assert len(norms(normed)) == sum(isinstance(module, nn.Conv2d) for module in plain.modules())


def test_after_training_folding_computes_what_the_norms_did():
    normed = insert_batch_norm(tiny_encoder(), features()).train()
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.05)
    for step in range(5):
        optimizer.zero_grad()
        normed(features(step + 1)).square().mean().backward()
        optimizer.step()
    plain = folded(normed)
    assert not norms(plain) and plain.state_dict().keys() == tiny_encoder().state_dict().keys()
    with torch.no_grad():
        assert torch.allclose(plain(features(9)), normed.eval()(features(9)), atol=1e-4)
        assert not torch.allclose(plain(features(9)), tiny_encoder()(features(9)), atol=1e-2)


def test_norms_can_be_loaded_instead_of_started():
    normed = insert_batch_norm(tiny_encoder(), features())
    other = insert_batch_norm(tiny_encoder(seed=1))
    other.load_state_dict(normed.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(features(2)), normed.eval()(features(2)))


def test_an_encoder_without_norms_is_folded_to_itself():
    plain = tiny_encoder()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in folded(plain).state_dict().items())


@pytest.mark.parametrize("frames", [8, 9, 65])
def test_awkward_lengths_pass(frames):
    normed = insert_batch_norm(tiny_encoder(), features())
    with torch.no_grad():
        assert normed(features(1, 2, frames)).shape == (2, 16)
