"""Further voices: the same clips faster or slower, as speakers of their own."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training import prepared
from train.__main__ import main
from train.prepare import PreparedSet
from train.speed_voices import SECONDS, VOICES, revoice


@pytest.fixture
def folder(tmp_path):
    prepared(tmp_path / "librispeech", "librispeech", speakers=3, takes=2, seconds=0.8)
    return tmp_path / "librispeech"


def copies(folder):
    return PreparedSet(folder.with_name(f"{folder.name}+voices"))


def test_each_speaker_gets_two_further_voices_of_so_many_clips(folder):
    assert revoice(folder, 3) == 18
    made = copies(folder)
    speakers = {clip.speaker for clip in made.clips}
    assert len(made.clips) == 18 and len(speakers) == 6
    for speaker in speakers:
        source, factor = speaker.split("@")
        assert source in {"librispeech-0", "librispeech-1", "librispeech-2"} and float(factor) in VOICES


def test_a_copy_is_as_much_shorter_as_it_is_faster(folder):
    revoice(folder, 2)
    lengths = {clip.path: clip.samples for clip in PreparedSet(folder).clips}
    for clip in copies(folder).clips:
        factor = float(clip.speaker.split("@")[1])
        assert abs(clip.samples - lengths[clip.path] / factor) <= 2


def test_a_long_clip_is_cropped(tmp_path):
    prepared(tmp_path / "librispeech", "librispeech", speakers=1, takes=1, seconds=6.0)
    revoice(tmp_path / "librispeech", 2)
    assert all(clip.samples <= SECONDS * 16000 + 2 for clip in copies(tmp_path / "librispeech").clips)


def test_speakers_held_out_of_training_get_no_further_voice(folder):
    revoice(folder, 2, without=frozenset({"librispeech-1"}))
    assert not any(clip.speaker.startswith("librispeech-1@") for clip in copies(folder).clips)


def test_the_copies_depend_on_the_seed_alone(folder):
    revoice(folder, 2, seed=4)
    first = [copies(folder).waveform(i) for i in range(12)]
    revoice(folder, 2, seed=4)
    again = copies(folder)
    assert all(np.array_equal(wave, again.waveform(i)) for i, wave in enumerate(first))


def test_the_copies_are_not_taken_for_clips_that_have_morphs(folder):
    """Morphs are found by corpus and number: a copy's number means another clip."""
    revoice(folder, 2)
    assert {clip.corpus for clip in copies(folder).clips} == {"librispeech+voices"}


def test_the_command_leaves_out_whom_training_leaves_out(tmp_path, capsys):
    prepared(tmp_path / "malayalam", "malayalam", speakers=6, takes=1, seconds=0.6)
    assert main(["revoice", str(tmp_path / "malayalam"), "--per-voice", "1"]) == 0
    assert "8 clips" in capsys.readouterr().out  # speakers 0 and 5 are held out
