"""Batches of parallel pairs: what is in them, and that they depend on seed and step alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from emoinv_edge.features import log_mel, mean_normalise
from tests.training import TINY_SPEC, prepared, random_embeddings, write_morphs
from train import pairs
from train.pairs import PairBatches, Recipe, Source
from train.prosody_morphs import MorphedSet

PLAIN = Recipe(
    copy_paste=0.0, morph=0.0, mask=0.0, channel=0.0, own_share=0.0, min_s=0.5, max_s=0.5, speaker_target=1.0,
    own_target=2.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def toy(root):
    clips = prepared(root / "toy", speakers=4, takes=2, seconds=0.7)
    return Source(clips, random_embeddings(clips), 1.0)


@pytest.fixture(scope="module")
def morphs(root, toy):
    write_morphs(root / "morphs", toy.clips)
    return MorphedSet(root / "morphs")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_holds_two_views_of_each_pair_and_their_targets(toy):
    batch = PairBatches([toy], TINY_SPEC, PLAIN, 5, 3, seed=0)[0]
    frames = TINY_SPEC.num_frames(8000)
    assert batch["features"].shape == (10, frames, 80) and batch["features"].dtype == torch.float32
    assert torch.equal(batch["labels"][:5], batch["labels"][5:])
    assert batch["targets"].shape == (10, 16)
    assert torch.allclose(batch["features"].mean(dim=1), torch.zeros(10, 80), atol=1e-3)


def test_a_batch_depends_on_seed_and_step_alone(toy, morphs):
    recipe = Recipe(min_s=0.4, max_s=0.6)
    first = PairBatches([toy], TINY_SPEC, recipe, 3, 4, 7, [morphs])
    again = PairBatches([toy], TINY_SPEC, recipe, 3, 4, 7, [morphs])
    assert equal(first[2], again[2])  # whatever came before
    assert not equal(first[1], first[2])
    assert not equal(first[2], PairBatches([toy], TINY_SPEC, recipe, 3, 4, 8, [morphs])[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(toy, workers):
    batches = PairBatches([toy], TINY_SPEC, Recipe(min_s=0.4, max_s=0.6), 2, 5, 1)
    alone = list(DataLoader(batches, batch_size=None, num_workers=0))
    shared = list(DataLoader(batches, batch_size=None, num_workers=workers))
    assert len(alone) == 5 and all(equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_both_views_are_of_the_speaker_that_the_label_names(toy):
    """Plain crops of whole clips: each row must be found among the crops of its speaker's own clips."""
    recipe = dataclasses.replace(PLAIN, min_s=0.7, max_s=0.7)
    batches = PairBatches([toy], TINY_SPEC, recipe, 6, 2, seed=3)
    speakers = sorted({clip.speaker for clip in toy.clips.clips})
    for step in range(2):
        batch = batches[step]
        for row, label in zip(batch["features"], batch["labels"], strict=True):
            own = [
                mean_normalise(log_mel(toy.clips.waveform(i), TINY_SPEC))
                for i, clip in enumerate(toy.clips.clips)
                if clip.speaker == speakers[int(label)]
            ]
            assert min(np.abs(row.numpy() - features).max() for features in own) < 1e-3


def test_held_out_speakers_never_appear_and_have_no_class(toy):
    speakers = sorted({clip.speaker for clip in toy.clips.clips})
    source = dataclasses.replace(toy, held_out=frozenset(speakers[:2]))
    batches = PairBatches([source], TINY_SPEC, PLAIN, 8, 4, 0)
    assert len(batches.centres) == 2
    assert set(torch.cat([batches[step]["labels"] for step in range(4)]).tolist()) == {0, 1}


def test_a_class_starts_at_the_speakers_mean_in_which_each_emotion_counts_alike(toy):
    clips = toy.clips.clips
    speaker = sorted({clip.speaker for clip in clips})[1]
    rows = {
        emotion: [toy.embeddings[i] for i, c in enumerate(clips) if c.speaker == speaker and c.emotion == emotion]
        for emotion in ("neutral", "angry")
    }
    mean = np.mean([np.mean(group, axis=0) for group in rows.values()], axis=0)
    centre = PairBatches([toy], TINY_SPEC, PLAIN, 1, 1, 0).centres[1]
    assert np.allclose(centre, mean / np.linalg.norm(mean), atol=1e-5)


def test_replayed_views_are_held_to_their_own_embedding_and_only_they(toy):
    recipe = dataclasses.replace(PLAIN, own_share=1.0)
    batch = PairBatches([toy], TINY_SPEC, recipe, 6, 1, 0)[0]
    for row in range(6):
        nearest = np.abs(toy.embeddings - batch["targets"][row].numpy()).max(axis=1).min()
        assert nearest < 1e-6 and float(batch["weights"][row]) == 2.0
    assert (batch["weights"][6:] == 1.0).all()


def test_targets_of_the_other_views_lie_with_their_speaker(toy):
    batches = PairBatches([toy], TINY_SPEC, PLAIN, 8, 1, 0)
    batch = batches[0]
    cosine = torch.nn.functional.normalize(batch["targets"]) @ torch.from_numpy(batches.centres).T
    assert torch.equal(cosine.argmax(dim=1), batch["labels"])


def test_shares_decide_how_often_a_set_is_drawn(root, toy):
    other = prepared(root / "other", "other", speakers=3, seconds=0.6)
    sources = [toy, Source(other, random_embeddings(other), 3.0)]
    batches = PairBatches(sources, TINY_SPEC, dataclasses.replace(PLAIN, min_s=0.1, max_s=0.1), 16, 20, 0)
    labels = torch.cat([batches[step]["labels"][:16] for step in range(20)])
    assert 0.68 < (labels >= 4).float().mean() < 0.82


def test_masks_silence_frames_and_no_mask_does_not(toy):
    def silent(recipe):
        batch = PairBatches([toy], TINY_SPEC, recipe, 6, 1, 0)[0]
        return (batch["features"] == 0).all(dim=2).float().mean()

    assert silent(PLAIN) == 0
    masked = silent(dataclasses.replace(PLAIN, mask=1.0, mask_fraction=0.25))
    assert 0.2 < masked < 0.3


def test_the_margin_rises_over_the_first_quarter_of_the_steps():
    recipe = Recipe(margin=0.2)
    assert [recipe.margin_at(step, 100) for step in (0, 10, 25, 99)] == pytest.approx([0.0, 0.08, 0.2, 0.2])


def test_morphs_are_drawn_as_often_as_asked(toy, morphs, monkeypatch):
    """The test's morphs are the clips at half their level, which shows in the level before normalisation."""
    seen = []

    def heard(waveform, spec):
        seen.append(float(np.abs(waveform).max()))
        return log_mel(waveform, spec)

    monkeypatch.setattr(pairs, "log_mel", heard)
    for share, expected in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        seen.clear()
        recipe = dataclasses.replace(PLAIN, morph=share, min_s=0.7, max_s=0.7)
        batches = PairBatches([toy], TINY_SPEC, recipe, 10, 6, 0, [morphs])
        for step in range(6):
            batches[step]
        assert np.mean(np.array(seen) < 0.3) == pytest.approx(expected, abs=0.15)


def test_a_speaker_with_one_clip_is_paired_only_if_it_has_morphs(root):
    clips = prepared(root / "few", "few", speakers=3, emotions=("neutral",), takes=2, seconds=0.6)
    write_morphs(root / "few-morphs", clips)
    clips.clips = clips.clips.nameless(np.arange(len(clips.clips)) == 1)  # the first speaker has one clip left
    source, recipe = Source(clips, random_embeddings(clips), 1.0), dataclasses.replace(PLAIN, min_s=0.2, max_s=0.2)

    def drawn(morphs):
        batches = PairBatches([source], TINY_SPEC, recipe, 8, 8, 0, morphs)
        return set(torch.cat([batches[step]["labels"] for step in range(8)]).tolist())

    assert len(drawn([])) == 2
    assert len(drawn([MorphedSet(root / "few-morphs")])) == 3


def test_no_speaker_at_all_is_refused(root, toy):
    everyone = frozenset(clip.speaker for clip in toy.clips.clips)
    with pytest.raises(ValueError, match="no clip with a speaker"):
        PairBatches([dataclasses.replace(toy, held_out=everyone)], TINY_SPEC, PLAIN, 1, 1, 0)


@pytest.mark.parametrize("name", ["copy_paste", "channel", "mask"])
def test_each_switch_changes_the_views_and_nothing_else(toy, name):
    noise = [np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)]
    off = PairBatches([toy], TINY_SPEC, PLAIN, 4, 1, 0, noises=noise)[0]
    on = PairBatches([toy], TINY_SPEC, dataclasses.replace(PLAIN, **{name: 1.0}), 4, 1, 0, noises=noise)[0]
    assert off["features"].shape == on["features"].shape
    assert not torch.equal(off["features"], on["features"])
