"""The linear layer fitted anew: nearer to the targets, held to where it was, and blind to who is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training import TINY_SPEC, prepared, tiny_encoder
from train.model import embed_waveforms
from train.pairs import Source
from train.refit import FRAMES, pooled_statistics, refit_linear, solve_ridge


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("refit") / "toy", speakers=8, takes=3, seconds=1.2)


@pytest.fixture(scope="module")
def source(clips):
    """Targets by another encoder."""
    lengths = [clip.samples for clip in clips.clips]
    return Source(clips, embed_waveforms(tiny_encoder(seed=4), TINY_SPEC, clips.waveform, lengths), 1.0)


def nearness(encoder, clips, targets):
    lengths = [clip.samples for clip in clips.clips]
    return float((embed_waveforms(encoder, TINY_SPEC, clips.waveform, lengths) * targets).sum(axis=1).mean())


def test_ridge_finds_the_line_behind_the_data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(3.0, 2.0, size=(400, 6)).astype(np.float32)
    weights, bias = rng.normal(size=(2, 6)), np.array([1.0, -2.0])
    found = solve_ridge(inputs, (inputs @ weights.T + bias).astype(np.float32), 1e-6)
    assert np.allclose(found[0], weights, atol=1e-3) and np.allclose(found[1], bias, atol=1e-2)


def test_more_features_than_clips_are_no_trouble_and_no_penalty_is_refused():
    rng = np.random.default_rng(0)
    inputs, wanted = rng.normal(size=(5, 9)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    weights, bias = solve_ridge(inputs, wanted, 0.1)
    assert np.isfinite(weights).all() and np.isfinite(bias).all()
    with pytest.raises(ValueError, match="expected a penalty above 0"):
        solve_ridge(inputs, wanted, 0.0)


def test_the_layer_comes_nearer_to_the_targets_the_lower_the_penalty(clips, source):
    start = tiny_encoder()
    before = nearness(start, clips, source.embeddings)
    held = nearness(refit_linear(start, TINY_SPEC, [source], 1e6), clips, source.embeddings)
    moved = nearness(refit_linear(start, TINY_SPEC, [source], 3.0), clips, source.embeddings)
    free = nearness(refit_linear(start, TINY_SPEC, [source], 0.01), clips, source.embeddings)
    assert held < moved < free and free > before + 0.05


def test_only_the_linear_layer_moves_and_the_start_not_at_all(source):
    start = tiny_encoder()
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    moved = refit_linear(start, TINY_SPEC, [source], 0.1).state_dict()
    changed = {name for name in kept if not torch.equal(kept[name], moved[name])}
    assert changed == {"linear.weight", "linear.bias"}
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in kept.items())


def test_held_out_speakers_and_failed_targets_have_no_say(clips, source):
    speakers = sorted({clip.speaker for clip in clips.clips})
    spoilt = source.embeddings.copy()
    for index, clip in enumerate(clips.clips):
        if clip.speaker == speakers[0]:
            spoilt[index] = np.eye(16, dtype=np.float32)[3]
    spoilt[-1] = np.nan
    fair = source.embeddings.copy()
    fair[-1] = np.nan
    held = frozenset({speakers[0]})
    first, second = (
        refit_linear(tiny_encoder(), TINY_SPEC, [Source(clips, targets, 1.0, held)], 0.1) for targets in (spoilt, fair)
    )
    assert torch.equal(first.linear.weight, second.linear.weight)


def test_statistics_are_those_that_the_encoder_pools_whatever_the_length(clips):
    encoder = tiny_encoder()
    waves = [clips.waveform(0)[:6000], clips.waveform(1), np.tile(clips.waveform(2), 4)]
    found = pooled_statistics(encoder, TINY_SPEC, lambda i: waves[i], [len(wave) for wave in waves])
    assert found.shape == (3, encoder.linear.in_features) and np.isfinite(found).all()
    exact = pooled_statistics(encoder, TINY_SPEC, lambda i: waves[2], [len(waves[2])])
    assert np.allclose(found[2], exact[0], atol=1e-4) and FRAMES[-1] <= TINY_SPEC.num_frames(len(waves[2]))
