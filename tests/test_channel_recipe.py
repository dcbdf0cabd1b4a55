"""Training through channels: what a batch holds, that it resumes, and what a judge measures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training import TINY_SPEC, prepared, random_embeddings, tiny_encoder

from train.channel import Channels, simulate_rooms
from train.channel_recipe import (
    CONDITIONS,
    ChannelBatches,
    ChannelJudge,
    ChannelPlan,
    ChannelSource,
    across,
    channel_loss,
    fit_channel,
    masked_contrast,
)
from train.evaluate import make_trials

PLAN = ChannelPlan(kinds={"landline": 0.5, "noise": 0.5}, speakers=4, warmup_steps=2, rate=1e-3, budget_s=600.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("sets") / "toy", speakers=6, takes=3)


@pytest.fixture(scope="module")
def rooms():
    return simulate_rooms(2, seed=1)


def batches_of(clips, plan=PLAN, **source):
    return ChannelBatches([ChannelSource(clips, random_embeddings(clips), 1.0, **source)], TINY_SPEC, plan, Channels())


def test_a_batch_has_three_views_of_each_speaker_one_of_them_clean(clips):
    batch = batches_of(clips)[0]
    assert batch["features"].shape[0] == batch["targets"].shape[0] == 12 and batch["features"].shape[2] == 80
    labels = batch["labels"].reshape(3, 4)
    assert (labels == labels[0]).all() and len(set(labels[0].tolist())) == 4
    embeddings = torch.from_numpy(random_embeddings(clips))
    to_own = (torch.nn.functional.normalize(batch["targets"], dim=1) @ embeddings.T).amax(dim=1)
    assert torch.allclose(to_own[:4], torch.ones(4)), "a clean view is held to its own embedding"


def test_a_batch_depends_on_seed_and_number_alone(clips):
    first, again = batches_of(clips), batches_of(clips)
    assert torch.equal(first[3]["features"], again[3]["features"])
    shapes = first[3]["features"].shape == first[4]["features"].shape
    assert not shapes or not torch.equal(first[3]["features"], first[4]["features"])


def test_speakers_that_are_held_out_are_never_seen(clips):
    held = frozenset({"toy-0", "toy-1"})
    batches = batches_of(clips, held_out=held)
    named = [clip.speaker for clip in clips.clips]
    embeddings = torch.from_numpy(random_embeddings(clips))
    for step in range(6):
        nearest = (torch.nn.functional.normalize(batches[step]["targets"][:4], dim=1) @ embeddings.T).argmax(dim=1)
        assert not held & {named[int(i)] for i in nearest}


def test_clips_without_a_speaker_have_targets_and_no_part_in_the_contrast(tmp_path):
    nameless = prepared(tmp_path / "toy", speakers=6)
    nameless.clips = [dataclasses.replace(clip, speaker="") for clip in nameless.clips]
    source = ChannelSource(nameless, np.eye(len(nameless.clips), 16, dtype=np.float32) + 0.1, 1.0)
    batch = ChannelBatches([source], TINY_SPEC, PLAN, Channels())[0]
    assert (batch["labels"] == -1).all()
    parts = channel_loss(torch.randn(12, 16), batch, PLAN)
    assert float(parts["matched"]) == 0.0 and float(parts["channel"]) > 0.0


def test_embeddings_of_another_set_are_refused(clips):
    with pytest.raises(ValueError, match="teach again"):
        ChannelBatches([ChannelSource(clips, np.ones((3, 16), np.float32), 1.0)], TINY_SPEC, PLAN, Channels())


def test_the_contrast_is_low_where_each_view_is_nearest_to_its_own_speakers_other_view():
    views, labels = torch.eye(5), torch.arange(5)
    assert masked_contrast(views, views, labels, 16.0) < 0.01
    assert masked_contrast(views, views.roll(1, 0), labels, 16.0) > 5.0
    assert masked_contrast(views, views.roll(1, 0), torch.zeros(5, dtype=torch.int64), 16.0) < 1e-6


def test_the_rate_rises_and_falls_with_the_seconds_that_are_spent():
    plan = ChannelPlan(warmup_steps=10, budget_s=100.0)
    assert plan.factor(0, 0.0) == pytest.approx(0.1)
    assert plan.factor(50, 50.0) == pytest.approx(0.51)
    assert plan.factor(99, 100.0) == plan.factor(99, 500.0) == pytest.approx(0.02)


@pytest.mark.slow
def test_a_run_lowers_its_loss_is_judged_and_goes_on_where_it_stopped(clips, rooms, tmp_path):
    judge = ChannelJudge(TINY_SPEC, {"toy": (clips, "same")}, rooms, most=24, longest_s=0.8)
    whole, told = tiny_encoder(), []
    fit_channel(whole, TINY_SPEC, batches_of(clips), PLAN, tmp_path / "whole", 0, judge, most_steps=40, say=told.append)
    assert any(line.startswith("judged at 40") for line in told)
    losses = [float(line.split(" loss ")[1]) for line in told if " loss " in line]
    assert losses[-1] < losses[0]

    begun = tiny_encoder()
    fit_channel(begun, TINY_SPEC, batches_of(clips), PLAN, tmp_path / "parts", 0, most_steps=3, say=told.append)
    other = tiny_encoder(seed=5)  # its weights are replaced by those of the run
    fit_channel(other, TINY_SPEC, batches_of(clips), PLAN, tmp_path / "parts", 0, most_steps=5, say=told.append)
    saved = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    assert saved["step"] == 5 and saved["spent_s"] > 0.0


def test_a_judge_measures_every_condition_on_both_sides(clips, rooms):
    judge = ChannelJudge(TINY_SPEC, {"toy": (clips, "same")}, rooms, most=24, longest_s=0.8)
    figures = judge(tiny_encoder())
    assert set(figures) == {f"{name}.{a}-{b}" for name in ("toy", "mean") for a, b in CONDITIONS}
    assert all(0.0 <= value <= 100.0 for value in figures.values())


def test_both_sides_equal_is_the_ordinary_eer_and_profiles_come_of_the_first_side(tmp_path):
    clips = prepared(tmp_path / "toy", speakers=5, takes=5)
    embeddings = random_embeddings(clips)
    noise = np.random.default_rng(3).normal(size=embeddings.shape).astype(np.float32)
    for protocol in ("same", "enrol"):
        trials = make_trials(clips.clips, protocol)
        assert across(trials, embeddings, embeddings) < 0.05
        assert across(trials, embeddings, noise) > 0.2 and across(trials, noise, embeddings) > 0.2
