"""Prosody morphs: made once for each speaker, the same whatever the workers, and read back whole."""

from __future__ import annotations

import pytest

from tests.training import prepared, write_morphs
from train.prosody_morphs import MorphedSet, morph


@pytest.fixture
def toy(tmp_path):
    return prepared(tmp_path / "toy", speakers=6, takes=2, seconds=0.6)


def test_morphs_are_made_for_each_speaker_whatever_the_workers(toy):
    made = []
    assert morph(toy.folder, 1, 0, 1, lambda done, total: made.append((done, total))) == 6
    assert made[-1] == (6, 6)
    first = (toy.folder / "morphs" / "audio.i16").read_bytes()
    morph(toy.folder, 1, 0, 2)
    assert (toy.folder / "morphs" / "audio.i16").read_bytes() == first
    found = MorphedSet(toy.folder / "morphs")
    assert len({toy.clips[index].speaker for _, index in found.of}) == 6
    for (corpus, index), places in found.of.items():
        assert len(places) == 1 and len(found.waveforms(corpus, index)) == 1


def test_a_stopped_morph_leaves_no_manifest(toy):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        morph(toy.folder, 1, 0, 1, stop)
    assert not (toy.folder / "morphs" / "manifest.csv").exists()


def test_a_morphed_set_that_was_stopped_gives_what_is_whole(toy, tmp_path):
    write_morphs(tmp_path / "cut", toy)
    table = tmp_path / "cut" / "manifest.csv"
    whole = MorphedSet(tmp_path / "cut")
    count = sum(len(whole.waveforms("toy", i)) for i in range(len(toy.clips)))
    assert count == len(toy.clips)
    table.write_text(table.read_text() + "toy,3,9999")  # the last line was not finished
    audio = tmp_path / "cut" / "audio.i16"
    audio.write_bytes(audio.read_bytes()[:-100])
    cut = MorphedSet(tmp_path / "cut")
    assert sum(len(cut.waveforms("toy", i)) for i in range(len(toy.clips))) == count - 1
