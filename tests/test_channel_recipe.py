"""Training through channels: what a batch holds, that it resumes, and what a judge measures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.training import TINY_SPEC, prepared, random_embeddings, tiny_encoder
from train import channel_recipe
from train.__main__ import main
from train.channel import Channels
from train.channel_judge import CONDITIONS, ChannelJudge, across
from train.channel_recipe import ChannelBatches, ChannelRecipe, channel_loss, fit_run
from train.evaluation.protocols import make_trials
from train.losses import contrast_loss
from train.model import load_checkpoint, save_checkpoint
from train.pairs import Source
from train.recipes import interpolate
from train.rooms import read_rooms, simulate_rooms
from train.schedule import Schedule

RECIPE = ChannelRecipe(kinds={"landline": 0.5, "noise": 0.5}, speakers=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("sets") / "toy", speakers=6, takes=3)


@pytest.fixture(scope="module")
def rooms():
    return simulate_rooms(2, seed=1)


def batches_of(clips, recipe=RECIPE, **source):
    return ChannelBatches([Source(clips, random_embeddings(clips), 1.0, **source)], TINY_SPEC, recipe, Channels())


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
    source = Source(nameless, np.eye(len(nameless.clips), 16, dtype=np.float32) + 0.1, 1.0)
    batch = ChannelBatches([source], TINY_SPEC, RECIPE, Channels())[0]
    assert (batch["labels"] == -1).all()
    parts = channel_loss(torch.randn(12, 16), batch, RECIPE)
    assert float(parts["matched"]) == 0.0 and float(parts["channel"]) > 0.0


def test_embeddings_of_another_set_are_refused(clips):
    with pytest.raises(ValueError, match="teach again"):
        ChannelBatches([Source(clips, np.ones((3, 16), np.float32), 1.0)], TINY_SPEC, RECIPE, Channels())


def test_the_contrast_is_low_where_each_view_is_nearest_to_its_own_speakers_other_view():
    views, labels = torch.eye(5), torch.arange(5)
    assert contrast_loss(views, views, labels, 16.0) < 0.01
    assert contrast_loss(views, views.roll(1, 0), labels, 16.0) > 5.0
    assert contrast_loss(views, views.roll(1, 0), torch.zeros(5, dtype=torch.int64), 16.0) < 1e-6


@pytest.mark.slow
def test_a_run_lowers_its_loss_and_is_judged(clips, rooms, tmp_path):
    judge = ChannelJudge(TINY_SPEC, {"toy": (clips, "same")}, rooms, most=24, longest_s=0.8)
    schedule = Schedule(steps=40, rate=1e-3, frozen_stages=0, warmup_steps=2, judge_every=40)
    batches = batches_of(clips)
    fit_run(tiny_encoder(), TINY_SPEC, batches, schedule, tmp_path / "run", num_workers=0, judge=judge)
    learnt, _, known = load_checkpoint(tmp_path / "run" / "best.pt")

    def loss(encoder):
        with torch.inference_mode():
            return float(channel_loss(encoder(batches[0]["features"]), batches[0], RECIPE)["loss"])

    assert loss(learnt) < loss(tiny_encoder())
    assert known["recipe"]["kinds"] == dict(RECIPE.kinds)
    assert "40,mean.tel-tel," in (tmp_path / "run" / "log.csv").read_text()


def test_frozen_stages_and_too_few_batches_are_refused(clips, tmp_path):
    with pytest.raises(ValueError, match="all layers"):
        fit_run(tiny_encoder(), TINY_SPEC, batches_of(clips), Schedule(steps=2), tmp_path)
    few = ChannelBatches([Source(clips, random_embeddings(clips), 1.0)], TINY_SPEC, RECIPE, Channels(), steps=1)
    with pytest.raises(ValueError, match="2 batches"):
        fit_run(tiny_encoder(), TINY_SPEC, few, Schedule(steps=2, frozen_stages=0), tmp_path)


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


@pytest.mark.slow
def test_fit_channel_interpolates_between_the_start_and_the_run_and_records_what_it_was_made_of(tmp_path, monkeypatch):
    root, out = tmp_path / "prepared", tmp_path / "run"
    prepared(root / "malayalam", "malayalam", speakers=11, emotions=("neutral",), takes=4)
    prepared(root / "librispeech", "librispeech", speakers=5)
    save_checkpoint(tmp_path / "base.pt", tiny_encoder(), TINY_SPEC)
    monkeypatch.setattr(channel_recipe, "SHARES", {"malayalam": 0.5, "librispeech": 0.5})
    command = ["fit", "channel", "--start", str(tmp_path / "base.pt"), "--prepared", str(root), "--rooms", "2"]
    assert main([*command, "--steps", "2", "--alpha", "0.25", "--judge", "malayalam", "-o", str(out)]) == 0

    mixed, _, known = load_checkpoint(out / "best.pt")
    run = load_checkpoint(out / "run" / "best.pt")[0]
    wanted = interpolate(tiny_encoder(), [run], 0.25).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in mixed.state_dict().items())
    assert {each["name"] for each in known["provenance"]["corpora"]} == {"malayalam", "librispeech"}
    assert known["provenance"]["teachers"][0]["name"].startswith("base") and known["alpha"] == 0.25
    assert "2,malayalam.clean-tel," in (out / "run" / "log.csv").read_text() and len(read_rooms(out / "rooms.npz")) == 2

    assert main([*command, "--alpha", "1.5", "-o", str(out)]) == 1
    assert main([*command, "--steps", "0", "-o", str(out)]) == 1


def test_a_start_with_a_front_end_of_its_own_learns_ours_by_its_answers_to_the_same_crops(clips, tmp_path):
    foreign = dataclasses.replace(TINY_SPEC, window="povey", waveform_scale=1.0)
    sources = [Source(clips, random_embeddings(clips), 1.0)]
    batches = ChannelBatches(sources, TINY_SPEC, RECIPE, Channels(), original_spec=foreign)
    batch, plain = batches[0], batches_of(clips)[0]
    assert torch.equal(batch["features"], plain["features"]) and batch["original"].shape == batch["features"][:4].shape
    assert not torch.allclose(batch["original"], batch["features"][:4], atol=0.05)

    fit_run(tiny_encoder(), TINY_SPEC, batches, Schedule(steps=1, frozen_stages=0), tmp_path)
    with torch.inference_mode():
        ours, wanted = (tiny_encoder()(features) for features in (batch["features"][:4], batch["original"]))
    distance = float(1.0 - torch.cosine_similarity(ours, wanted).mean())
    (own,) = (line for line in (tmp_path / "log.csv").read_text().splitlines() if line.startswith("1,own,"))
    assert float(own.split(",")[2]) == pytest.approx(distance, abs=1e-3)


def test_the_distance_of_clean_crops_counts_as_much_as_asked(clips):
    batch = batches_of(clips)[0]
    embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    light, heavy = (channel_loss(embeddings, batch, dataclasses.replace(RECIPE, clean_weight=w)) for w in (0.5, 1.5))
    assert torch.allclose(heavy["loss"] - light["loss"], light["own"])
