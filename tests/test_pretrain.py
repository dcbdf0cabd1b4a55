"""Pretraining: the recipe's numbers, classes by speed, epochs that hear every clip once, and that a net learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.training import TINY_SHAPE, TINY_SPEC, prepared
from train import pretrain as pretraining
from train.__main__ import main
from train.batch_norm import insert_batch_norm
from train.evaluation.metrics import eer
from train.evaluation.protocols import make_trials
from train.model import ResidualEncoder, embed_waveforms, load_checkpoint
from train.prepare import PreparedSet
from train.pretrain import STAGES, SpeakerBatches, Stage, pretrain

SHORT = Stage("aam", 4, 8, 0.4, 0.1, 1e-3, 0.1, 0.2, 0.2, 0.5)
LONG = dataclasses.replace(SHORT, name="margin", epochs=2, seconds=0.6, rate=1e-3, last_rate=1e-4, margin=0.5)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("pretrain") / "toy", speakers=4, takes=2, seconds=0.6)


def fresh():
    torch.manual_seed(0)
    return insert_batch_norm(ResidualEncoder(TINY_SHAPE))


def equal_error_rate(encoder, clips):
    embeddings = embed_waveforms(encoder, TINY_SPEC, clips.waveform, [clip.samples for clip in clips.clips])
    trials = make_trials([dataclasses.replace(clip, emotion="", gender="") for clip in clips.clips], "same")
    scores = trials.scores(embeddings)
    return eer(scores[trials.target], scores[~trials.target])


def test_the_stages_are_those_of_wespeaker():
    first, second = STAGES
    vox = first.schedule(1_092_009)
    assert vox.steps == 150 * 1_092_009 // 256 + 1
    assert vox.rate * vox.factor(vox.steps) == pytest.approx(5e-5)
    assert vox.rate * vox.factor(0) < 1e-5 and vox.rate * vox.factor(vox.warmup_steps) == pytest.approx(
        0.0738, rel=0.01
    )
    epoch = vox.steps / 150
    assert [first.margin_at(round(number * epoch), vox.steps) for number in (0, 20, 40, 150)] == [0.0, 0.0, 0.2, 0.2]
    growing = [first.margin_at(round(number * epoch), vox.steps) for number in range(20, 41, 4)]
    assert growing == sorted(growing) and growing[1] > 0.1  # quickly at first
    assert second.margin_at(0, 10) == 0.5 and second.seconds == 6.0


def test_every_clip_is_heard_once_an_epoch_in_another_order_each_time(toy):
    batches = SpeakerBatches([toy], TINY_SPEC, 4, 0.4, 1)
    assert batches.clips == 16 and batches.classes == 12
    heard = []
    for each in (0, 1):
        speakers = torch.cat([batches[number]["labels"] % 4 for number in range(4 * each, 4 * each + 4)])
        assert torch.bincount(speakers).tolist() == [4] * 4
        heard.append(speakers.tolist())
    assert heard[0] != heard[1]


def test_a_batch_is_made_from_its_number_alone(toy):
    first, second = (SpeakerBatches([toy], TINY_SPEC, 4, 0.4, 1) for _ in range(2))
    for number in (9, 2, 3):
        one, other = first[number], second[number]
        assert torch.equal(one["features"], other["features"]) and torch.equal(one["labels"], other["labels"])
    assert first[0]["features"].shape == (4, 38, 80)


def test_a_speaker_is_another_class_at_each_speed(toy):
    batches = SpeakerBatches([toy], TINY_SPEC, 16, 0.4, 1)
    labels = torch.cat([batches[number]["labels"] for number in range(6)])
    assert set(labels.tolist()) == set(range(12))


def test_rooms_and_noise_change_six_crops_in_ten(toy):
    noise, room = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32), np.zeros(800, np.float32)
    room[[0, 400]] = 1.0, 0.7
    plain = SpeakerBatches([toy], TINY_SPEC, 8, 0.4, 1)
    disturbed = SpeakerBatches([toy], TINY_SPEC, 8, 0.4, 1, [noise], [room])
    # Only the first crop of a batch is drawn alike in both: what is drawn for the noise comes after it.
    changed = [not torch.equal(plain[n]["features"][0], disturbed[n]["features"][0]) for n in range(40)]
    assert 0.4 < np.mean(changed) < 0.8


def test_speakers_that_are_held_out_are_no_class(toy):
    assert SpeakerBatches([toy], TINY_SPEC, 4, 0.4, 1, held_out=frozenset({"toy-0"})).speakers == (
        "toy-1", "toy-2", "toy-3",
    )  # fmt: skip
    with pytest.raises(ValueError, match="two speakers or more to train on, got 1"):
        SpeakerBatches([toy], TINY_SPEC, 4, 0.4, 1, held_out=frozenset({"toy-0", "toy-1", "toy-2"}))


@pytest.mark.parametrize("ranks, accumulate", [(3, 1), (2, 3), (8, 1), (1, 0)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(toy, tmp_path, monkeypatch, ranks, accumulate):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ValueError, match="stage aam: a batch of 8 crops cannot be shared"):
        pretrain(fresh(), TINY_SPEC, [toy], tmp_path, [SHORT], accumulate)


def test_a_tiny_net_learns_from_random_weights_to_separate_voices_in_an_emotion_it_never_heard(tmp_path):
    voices = prepared(tmp_path / "voices", speakers=10, takes=4, seconds=0.8)
    others = prepared(tmp_path / "others", speakers=5, emotions=("sad",), takes=6, seconds=0.8)
    torch.manual_seed(0)
    before = equal_error_rate(ResidualEncoder(TINY_SHAPE).eval(), others)
    stage = dataclasses.replace(SHORT, epochs=30, batch=16, rate=0.02)
    after = equal_error_rate(pretrain(fresh(), TINY_SPEC, [voices], tmp_path / "run", [stage], num_workers=0), others)
    assert after < 0.25 < before


def test_a_stopped_pretraining_goes_on_within_either_stage_to_the_same_weights(toy, tmp_path, monkeypatch):
    whole = pretrain(fresh(), TINY_SPEC, [toy], tmp_path / "whole", [SHORT, LONG], num_workers=0)
    monkeypatch.setattr(Stage, "schedule", lambda stage, *a, _make=Stage.schedule, **c: dataclasses.replace(
        _make(stage, *a, **c), checkpoint_every_s=0.0
    ))  # fmt: skip

    def stopping(at):
        def named(name):
            def progress(done, total):
                if (name, done) == at:
                    raise KeyboardInterrupt

            return progress

        return named

    for at in (("pretrain aam", 5), ("pretrain margin", 2)):
        with pytest.raises(KeyboardInterrupt):
            pretrain(fresh(), TINY_SPEC, [toy], tmp_path / "cut", [SHORT, LONG], num_workers=0, progress=stopping(at))
    again = pretrain(fresh(), TINY_SPEC, [toy], tmp_path / "cut", [SHORT, LONG], num_workers=0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    kept, _, about = load_checkpoint(tmp_path / "cut" / "best.pt")
    assert about["stages"] == ["aam", "margin"] and about["finished"]
    assert torch.equal(kept.linear.weight, whole.linear.weight)


class Mean(torch.nn.Module):
    """Another architecture: the mean of the features, weighted."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(80, 16)

    def forward(self, features):
        return self.linear(features.std(dim=1))


def test_another_architecture_is_trained_with_its_own_way_to_be_kept(toy, tmp_path):
    def save(path, encoder, spec, **about):
        torch.save({"weight": encoder.linear.weight.detach(), "step": about["step"]}, path)

    found = pretrain(
        Mean(), TINY_SPEC, [toy], tmp_path, [SHORT], plain=lambda encoder: encoder.eval(), save=save, num_workers=0
    )
    assert isinstance(found, Mean)
    assert torch.equal(torch.load(tmp_path / "best.pt", weights_only=True)["weight"], found.linear.weight)


def test_the_command_pretrains_on_prepared_sets(tmp_path, monkeypatch, capsys):
    prepared(tmp_path / "prepared" / "librispeech", "librispeech", speakers=4, seconds=0.6)
    monkeypatch.setattr(pretraining, "STAGES", (SHORT, LONG))
    monkeypatch.setattr(pretraining, "SHAPE", TINY_SHAPE)
    monkeypatch.setattr(pretraining, "SPEC", TINY_SPEC)
    command = ["fit", "pretrain", "--prepared", str(tmp_path / "prepared"), "--corpora", "librispeech", "--rooms", "0"]
    command += ["--epochs", "1", "--margin-epochs", "0.5", "--batch", "8", "-o", str(tmp_path / "run")]
    assert main(command) == 0
    assert "crops/s" in capsys.readouterr().err
    _, _, about = load_checkpoint(tmp_path / "run" / "best.pt")
    assert about["provenance"]["corpora"] == [{"name": "librispeech", "licence": "CC BY 4.0"}]
    assert main([*command, "--epochs", "0"]) == 1
    assert "expected --epochs above 0" in capsys.readouterr().err
    assert isinstance(PreparedSet(tmp_path / "prepared" / "librispeech"), PreparedSet)
