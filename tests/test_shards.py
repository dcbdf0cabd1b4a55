"""Shards give what one file gives: the same clips, the same batches, whatever is missing is said and left out."""

from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import synthesise
from tests.training import TINY_SPEC, prepared, random_embeddings
from train import shards
from train.__main__ import main
from train.corpora import CORPORA
from train.crops import Crops
from train.loop import Batches
from train.manifest import Clips, PreparedClip
from train.pairs import PairBatches, Recipe
from train.prepare import PreparedSet, by_speaker
from train.recipes import open_sources
from train.shards import Shards, write_shards
from train.teachers import save_rows

RECIPE = Recipe(min_s=0.4, max_s=0.5, morph=0.0, channel=0.0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """One corpus prepared twice: in one file, and in shards of a few clips."""
    folder = tmp_path_factory.mktemp("shards")
    rows = ["path,speaker,emotion"]
    for speaker in range(4):
        for take, emotion in enumerate(("neutral", "angry", "neutral", "sad")):
            name = f"{speaker}-{take}.wav"
            wave = synthesise(0.6 + 0.1 * take, 10 * speaker + take, 100.0 + 30 * speaker)
            soundfile.write(folder / name, wave, 16000, subtype="PCM_16")
            rows.append(f"{name},{speaker},{emotion}")
    table = folder / "toy.csv"
    table.write_text("\n".join(rows) + "\n")
    patched = pytest.MonkeyPatch()
    patched.setattr(shards, "MOST_CLIPS", 3)
    assert main(["prepare", "toy", "--csv", str(table), "-o", str(folder / "whole")]) == 0
    assert main(["prepare", "toy", "--csv", str(table), "--shards", str(folder / "cut"), "--workers", "1"]) == 0
    patched.undo()
    for root in ("whole", "cut"):
        save_rows(folder / root / "toy" / "public.npy", random_embeddings(PreparedSet(folder / root / "toy")))
    return folder


@pytest.fixture
def cut(roots, tmp_path):
    """A copy of the sharded set that a test may damage."""
    for path in (roots / "cut" / "toy").iterdir():
        (tmp_path / "toy").mkdir(exist_ok=True)
        (tmp_path / "toy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "toy"


def batches(root, steps=4):
    sources, _ = open_sources(root, {"toy": 1.0}, use="research")
    return PairBatches(sources, TINY_SPEC, RECIPE, 3, steps, 1)


def test_shards_hold_the_very_clips_of_one_file_in_the_manifests_order(roots):
    whole, cut = PreparedSet(roots / "whole" / "toy"), PreparedSet(roots / "cut" / "toy")
    assert not (roots / "cut" / "toy" / "audio.i16").exists()
    assert len(list((roots / "cut" / "toy").glob("shard-*.tar"))) == 6
    assert [(c.path, c.speaker, c.emotion) for c in whole.clips] == [(c.path, c.speaker, c.emotion) for c in cut.clips]
    for index in range(len(whole.clips)):
        np.testing.assert_array_equal(whole.waveform(index), cut.waveform(index))


def test_clips_lie_in_shards_in_another_order_than_in_the_corpus(roots):
    starts = [clip.start for clip in PreparedSet(roots / "cut" / "toy").clips]
    assert sorted(starts) == list(range(16)) and starts != list(range(16))


def test_batches_from_shards_equal_those_from_one_file(roots):
    whole, cut = batches(roots / "whole"), batches(roots / "cut")
    for step in range(4):
        for name, values in whole[step].items():
            assert torch.equal(values, cut[step][name])


def test_crops_from_shards_equal_those_from_one_file(roots):
    made = [
        Crops([PreparedSet(roots / root / "toy")], [1.0], TINY_SPEC, 2, 4, 3)[1]["features"]
        for root in ("whole", "cut")
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_shards_goes_on_with_the_very_next_batch(roots, workers):
    expected = batches(roots / "cut", 6)[4]["features"]
    ahead = Batches(batches(roots / "cut", 6), 6, workers)
    assert torch.equal(ahead(4)["features"], expected)


def test_ranks_and_workers_share_the_batches_of_shards_without_overlap(roots, monkeypatch):
    alone = batches(roots / "cut", 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        ahead = Batches(alone, 2, 2)
        for step in (0, 1):
            assert torch.equal(ahead(step)["features"], alone[2 * step + rank]["features"])


def test_other_tools_read_the_shards(roots):
    with tarfile.open(roots / "cut" / "toy" / "shard-000000.tar") as tar:
        assert tar.getnames() == ["000000000.wav", "000000001.wav", "000000002.wav"]
        member = tar.extractfile("000000001.wav")
        samples, rate = soundfile.read(member)
    assert rate == 16000 and len(samples) > 6000
    index = json.loads((roots / "cut" / "toy" / "shards.json").read_text())
    assert index["wids_version"] == 1 and [each["nsamples"] for each in index["shardlist"]] == [3] * 5 + [1]


@pytest.mark.parametrize("harm", ["missing", "torn"])
def test_a_missing_or_torn_shard_is_named_and_its_clips_are_left_out(cut, harm):
    broken = cut / "shard-000002.tar"
    if harm == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.warns(UserWarning, match=rf"3 of 16 clips are skipped: shard-000002\.tar is {harm}"):
        left = PreparedSet(cut)
    assert len(left.clips) == 16
    lost = [index for index, clip in enumerate(left.clips) if clip.samples == 0]
    assert len(lost) == 3 and all(left.clips[index].speaker for index in lost)
    assert not set(lost) & {i for group in by_speaker(left.clips).values() for i in group}
    with pytest.raises(ValueError, match=rf"shard-000002\.tar is {harm}.*; copy it again, or prepare again"):
        left.waveform(lost[0])
    with pytest.warns(UserWarning):
        found = batches(cut.parent)
    assert all(torch.isfinite(found[step]["features"]).all() for step in range(4))


def test_a_set_without_a_whole_shard_is_refused(cut):
    for path in cut.glob("shard-*.tar"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 6 shards is whole"):
        PreparedSet(cut)


def test_an_index_that_is_none_is_refused(cut):
    (cut / "shards.json").write_text("[]")
    with pytest.raises(ValueError, match=r"shards\.json: no index of shards"):
        PreparedSet(cut)


def test_a_manifest_of_more_clips_than_the_shards_hold_is_refused(cut):
    index = json.loads((cut / "shards.json").read_text())
    index["shardlist"].pop()
    (cut / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"shards\.json holds 15 clips, expected 16"):
        PreparedSet(cut)


def test_rot_within_a_shard_is_an_error_that_names_it(cut):
    broken = cut / "shard-000001.tar"
    content = bytearray(broken.read_bytes())
    content[512:524] = bytes(12)  # the first clip's RIFF header
    broken.write_bytes(content)
    clips = PreparedSet(cut)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: clip 3 cannot be read"):
        for index in range(16):
            clips.waveform(index)


def test_preparing_again_in_one_file_leaves_no_index_behind(cut):
    prepared(cut, speakers=2)
    assert not isinstance(PreparedSet(cut).audio, Shards)


def test_opened_shards_go_to_another_process_closed_and_open_there(roots):
    clips = PreparedSet(roots / "cut" / "toy")
    expected = clips.waveform(5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clips)).waveform(5), expected)


def test_more_shards_than_a_process_holds_open_are_read_all_the_same(roots, monkeypatch):
    monkeypatch.setattr(shards, "MOST_OPEN", 2)
    whole, cut = PreparedSet(roots / "whole" / "toy"), PreparedSet(roots / "cut" / "toy")
    for index in (0, 15, 7, 3, 0, 11, 15):
        np.testing.assert_array_equal(whole.waveform(index), cut.waveform(index))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=12), bytes_=st.sampled_from([1, 3000, 10**9]))
def test_shards_of_any_size_give_back_what_was_written(tmp_path_factory, lengths, bytes_):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(len(lengths))
    clips = [rng.integers(-32768, 32767, length).astype(np.int16) for length in lengths]
    with write_shards(folder, bytes_) as add:
        assert [add(clip) for clip in clips] == list(range(len(clips)))
    found = Shards(folder)
    assert len(found) == len(clips) and not found.skipped
    for number, clip in enumerate(clips):
        np.testing.assert_array_equal(found(number, len(clip)), clip)
    with pytest.raises(ValueError, match="expected"):
        found(0, lengths[0] + 1)


def test_rows_of_a_manifest_are_what_was_written(roots):
    clips = PreparedSet(roots / "whole" / "toy").clips
    assert isinstance(clips, Clips) and isinstance(clips[0], PreparedClip)
    assert clips[-1] == list(clips)[-1] == clips[15:][0] and len(clips[2:5]) == 3
    with pytest.raises(IndexError):
        clips[16]
    changed = clips.nameless(np.arange(16) == 2)
    assert changed[2].speaker == "" and changed[2].samples == clips[2].samples and changed[3] == clips[3]
    assert clips[2].speaker == "toy-0"  # the first is as it was


def test_a_manifest_without_a_column_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("corpus,speaker\na,b\n")
    with pytest.raises(ValueError, match=r"expected the columns corpus.*'start'.* missing"):
        PreparedSet(tmp_path)


def test_one_place_for_a_set_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "toy", "--csv", "x.csv", "-o", "a", "--shards", "b"])
    assert "not allowed with" in capsys.readouterr().err
    assert "voxceleb" in CORPORA
