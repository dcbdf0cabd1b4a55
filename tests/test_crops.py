"""What a compression hears: always other voices, the teacher the same ones, and each batch from its number alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import synthesise
from tests.training import TINY_SPEC, prepared
from train.crops import CROP_FRAMES, Crops, Variety, warped_bins
from train.prosody_morphs import MorphedSet, morph
from train.spectrum import read_along
from train.tape import Tape

PLAIN = Variety(*(0.0,) * len(dataclasses.fields(Variety)))


@pytest.fixture
def clips(tmp_path):
    return prepared(tmp_path / "toy", speakers=4, seconds=1.5)


def crops(clips, variety=None, batch=16, **options):
    return Crops([clips], [1.0], TINY_SPEC, 50, batch, 1, variety=variety, **options)


def of(**changed):
    """Only these changes, at their usual strength."""
    bounds = {
        field.name: field.default
        for field in dataclasses.fields(Variety)
        if field.name in ("slowest", "fastest", "exponent", "ripple", "shortest", "longest", "level")
    }
    return dataclasses.replace(PLAIN, **bounds, **changed)


def test_a_batch_depends_on_its_number_alone(clips):
    one, other = crops(clips), crops(clips)
    other[7]
    assert torch.equal(one[3]["features"], other[3]["features"])
    assert not torch.equal(one[3]["features"][0, :50], one[4]["features"][0, :50])


@pytest.mark.parametrize("step", range(8))
def test_crops_are_finite_mean_normalised_and_of_few_lengths(clips, step):
    rooms = [np.array([1.0, 0.0, 0.3], np.float32)]
    batch = crops(clips, rooms=rooms, noises=[synthesise(0.2, 9)])[step]
    for name in ("features", "clean"):
        assert batch[name].dtype == torch.float32 and batch[name].shape[0] == 16 and batch[name].shape[2] == 80
        assert batch[name].shape[1] in CROP_FRAMES and torch.isfinite(batch[name]).all()
        assert batch[name].mean(dim=1).abs().max() < 1e-3


def test_the_teacher_hears_what_the_small_encoder_does_but_for_some_noise(clips):
    batch = crops(clips, batch=64)[0]
    differs = (batch["features"] != batch["clean"]).flatten(1).any(dim=1)
    assert 4 < differs.sum() < 40
    same = crops(clips, of(disturbed=1.0, warp=1.0, emotion=1.0, bent=1.0, second_voice=1.0, joined=1.0))[0]
    assert torch.equal(same["features"], same["clean"])


@pytest.mark.parametrize(
    "change", ["speed", "warp", "stretch", "emotion", "second_voice", "disturbed", "bent", "joined"]
)
def test_each_change_changes_the_crops(clips, change):
    plain, changed = (
        crops(clips, PLAIN, 1 + (change == "joined")),
        crops(clips, of(**{change: 1.0}), 1 + (change == "joined")),
    )
    assert any(not torch.allclose(plain[step]["features"], changed[step]["features"], atol=0.1) for step in range(3))


def test_a_joined_crop_ends_as_the_one_before_it(clips):
    apart, joined = crops(clips, PLAIN, 2)[0]["clean"], crops(clips, of(joined=1.0), 2)[0]["clean"]
    assert torch.equal(apart[0], joined[0])

    def movement(crop):  # the mean over the frames is taken out of each
        return np.diff(crop.numpy(), axis=0)

    frames = len(apart[0])
    assert np.allclose(movement(joined[1])[: frames // 4 - 1], movement(apart[1])[: frames // 4 - 1], atol=1e-4)
    assert np.allclose(movement(joined[1])[3 * frames // 4 :], movement(apart[0])[3 * frames // 4 :], atol=1e-4)


def test_a_teacher_answers_in_the_place_of_the_clean_crops(clips):
    batch = crops(clips, teacher=lambda heard: {"embedding": torch.from_numpy(heard.mean(axis=(1, 2)))})[0]
    assert set(batch) == {"features", "embedding"}


def test_crops_are_of_morphs_too(clips, monkeypatch):
    morph(clips.folder, 1, num_workers=1)
    morphed = MorphedSet(clips.folder / "morphs")
    places = [(morphed, start, samples) for found in morphed.of.values() for start, samples in found]
    read, original = [], Tape.read

    def spied(tape, pieces, *arguments):
        read.extend(map(tuple, pieces))
        return original(tape, pieces, *arguments)

    monkeypatch.setattr(Tape, "read", spied)
    batch = crops(clips, of(morph=0.25), 64, morphs=places)[0]
    of_morphs = [piece[1:] for piece in read if piece[0] == 1]  # the sets come first
    assert len(batch["features"]) == len(read) == 64 and 6 < len(of_morphs) < 30
    assert set(of_morphs) <= {place[1:] for place in places}


# Formants and rate


def warped(features, exponent, ripple, waves):
    """One crop of features, its formants moved."""
    bins = warped_bins(80, np.array([exponent]), np.array([ripple]), np.array([waves]))
    return read_along(features[None], torch.from_numpy(bins)[:, None], dim=2)[0]


def test_another_vocal_tract_moves_the_formants():
    features = torch.zeros(5, 80)
    features[:, 40] = 1.0
    torch.testing.assert_close(warped(features, 1.0, 0.0, 1), features, atol=1e-4, rtol=0)
    assert warped(features, 1.2, 0.0, 1).argmax(dim=1).min() > 42  # read from further below: it rises
    assert warped(features, 0.85, 0.0, 1).argmax(dim=1).max() < 38
    assert warped(features, 1.0, 2.0, 1).argmax(dim=1).tolist() == [38] * 5


@given(st.floats(0.8, 1.25), st.floats(-3, 3), st.integers(1, 4), st.integers(1, 40))
@settings(max_examples=30)
def test_a_warp_keeps_shape_type_and_range(exponent, ripple, waves, frames):
    features = torch.from_numpy(np.random.default_rng(frames).normal(size=(frames, 80)).astype(np.float32))
    moved = warped(features, exponent, ripple, waves)
    assert moved.shape == features.shape and moved.dtype == torch.float32
    assert moved.min() >= features.min() - 1e-5 and moved.max() <= features.max() + 1e-5


@pytest.mark.parametrize(("before", "after"), [(1, 7), (2, 2), (50, 50), (50, 37), (50, 91), (50, 1)])
def test_another_rate_keeps_the_ends_and_gives_the_frames_asked_for(before, after):
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(2, before, 80)).astype(np.float32))
    positions = torch.linspace(0, before - 1, after)[None, :, None]
    stretched = read_along(features, positions, dim=1)
    assert stretched.shape == (2, after, 80)
    torch.testing.assert_close(stretched[:, 0], features[:, 0])
    assert after == 1 or torch.allclose(stretched[:, -1], features[:, -1], atol=1e-5)
