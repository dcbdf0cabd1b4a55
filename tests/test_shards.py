"""Tar shards: what goes in comes out, whatever was stopped; memory stays flat however long the corpus."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import tarfile
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from conftest import synthesise
from torch.utils.data import DataLoader
from training import TINY_SPEC, tiny_encoder

from train.__main__ import main
from train.corpora import Clip
from train.loop import Schedule, fit
from train.pairs import Recipe
from train.prepare import decode, trim_silence
from train.shards import INDEX, ShardClip, ShardedSpeech, ShardPairs, describe, plan_groups, write_shards

RECIPE = Recipe(min_s=0.3, max_s=0.4, pair_weight=0.5, softmax_weight=1.0, morph=0.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five speakers of 3, 6, 9, 12 and 1 clips, and a corrupt one."""
    root = tmp_path_factory.mktemp("clips")
    out = []
    for speaker, count in enumerate((3, 6, 9, 12, 1)):
        for take in range(count):
            path = root / f"{speaker}-{take}.wav"
            soundfile.write(path, synthesise(0.5, 31 * speaker + take, 100 + 30 * speaker), 16000)
            out.append(Clip(path, "toy", f"toy-{speaker}", "female", "neutral", f"täke {take}"))
    (root / "corrupt.wav").write_bytes(b"RIFF")
    return [*out, Clip(root / "corrupt.wav", "toy", "toy-1")]


@pytest.fixture(scope="module")
def folder(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "toy"
    assert write_shards(clips, out, hours=4 / 3600, num_workers=1) == (31, 1)
    return out


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_clip_comes_back_with_its_labels_and_samples(clips, folder):
    speech = ShardedSpeech(folder)
    found = {labels.path: (labels, wave) for k in range(len(speech)) for labels, wave in speech.group(k)}
    assert len(found) == 31
    for clip in clips[:-1]:
        labels, wave = found["/".join(clip.path.parts[-3:])]
        assert (labels.speaker, labels.gender, labels.sentence) == (clip.speaker, clip.gender, clip.sentence)
        source = decode(clip.path)
        assert np.abs(wave - source[trim_silence(source)]).max() < 2 / 32768
        assert labels.samples == len(wave)


def test_there_are_several_shards_and_a_damaged_clip_is_listed(folder):
    assert describe(folder)["shards"] > 2 and describe(folder)["clips"] == 31
    rows = list(csv.DictReader((folder / "skipped.csv").read_text().splitlines()))
    assert len(rows) == 1 and rows[0]["path"].endswith("corrupt.wav") and rows[0]["reason"]


def test_a_group_is_one_speakers_and_none_is_left_with_one_clip_needlessly(clips, folder):
    groups = plan_groups(clips)
    assert all(len({clip.speaker for clip in group}) == 1 and len(group) <= 8 for group in groups)
    assert sorted(len(group) for group in groups) == [1, 3, 4, 5, 6, 6, 7]
    speech = ShardedSpeech(folder)
    for k in range(len(speech)):
        speakers = {labels.speaker for labels, _ in speech.group(k)}
        assert speakers == {speech.speakers[int(speech.index["speaker"][k])]}


def test_shards_can_be_read_as_plain_tar_files(folder):
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert Counter(name.rpartition(".")[2] for name in names).keys() == {"flac", "json"}
        assert len(names) == len(set(names))


def test_shards_do_not_depend_on_the_number_of_workers(clips, folder, tmp_path):
    write_shards(clips, tmp_path / "three", hours=4 / 3600, num_workers=3)
    assert content(tmp_path / "three") == content(folder)


@pytest.mark.parametrize("stop", [5, 18, 30])
def test_a_stopped_call_goes_on_to_the_same_shards(clips, folder, tmp_path, stop):
    def progress(done):
        if done >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(clips, tmp_path / "set", hours=4 / 3600, num_workers=1, progress=progress)
    with pytest.raises(ValueError, match=r"no index\.npy; write the shards to their end"):
        ShardedSpeech(tmp_path / "set")
    write_shards(clips, tmp_path / "set", hours=4 / 3600, num_workers=1)
    assert content(tmp_path / "set") == content(folder)


def test_shards_of_other_clips_are_not_continued(clips, folder):
    with pytest.raises(ValueError, match="holds shards of other clips"):
        write_shards(clips[:-3], folder, hours=4 / 3600, num_workers=1)


def test_ranks_write_their_own_shards_and_share_one_index(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("train.distributed.barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    kept = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        kept.append(write_shards(clips, tmp_path / "set", hours=1.0, num_workers=1)[0])
    assert sum(kept) == 31 and min(kept) > 5
    speech = ShardedSpeech(tmp_path / "set")
    paths = [labels.path for k in range(len(speech)) for labels, _ in speech.group(k)]
    assert len(paths) == len(set(paths)) == 31


def test_a_shard_that_is_missing_cut_or_altered_is_refused(clips, tmp_path):
    out = tmp_path / "set"
    write_shards(clips, out, hours=4 / 3600, num_workers=1)
    first, last = sorted(out.glob("*.tar"))[0], sorted(out.glob("*.tar"))[-1]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="copy it again"):
        ShardedSpeech(out)
    first.write_bytes(b"\x55" * len(whole))
    speech = ShardedSpeech(out)
    with pytest.raises(ValueError, match="group 0: damaged"):
        speech.group(0)
    first.write_bytes(whole)
    last.unlink()
    with pytest.raises(ValueError, match="copy the missing ones"):
        ShardedSpeech(out)


def test_each_epoch_holds_every_group_once_in_another_order(folder):
    speech = ShardedSpeech(folder)
    orders = [speech.order(1, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(len(speech))) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert speech.order(1, 2).tolist() == orders[2] != speech.order(2, 2).tolist()


def test_reading_stays_within_a_window_of_shards(folder):
    speech = ShardedSpeech(folder)
    shards = speech.index["shard"][speech.order(0, 0, window=1)]
    changes = sum(a != b for a, b in itertools.pairwise(shards.tolist()))
    assert changes == len(set(shards.tolist())) - 1


# Training


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_batches_depend_on_seed_and_step_alone_whatever_the_workers(folder):
    batches = ShardPairs(ShardedSpeech(folder), TINY_SPEC, RECIPE, 2, 6, 1)
    alone = [batches[step] for step in range(6)]
    again = ShardPairs(ShardedSpeech(folder), TINY_SPEC, RECIPE, 2, 6, 1)
    assert equal(again[4], alone[4])
    for workers in (1, 2):
        shared = list(DataLoader(batches, batch_size=None, num_workers=workers))
        assert all(equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_an_epoch_of_batches_draws_each_group_at_most_once(folder):
    speech = ShardedSpeech(folder)
    batches = ShardPairs(speech, TINY_SPEC, RECIPE, 3, 100, 1)
    per_epoch = len(speech) // 3
    labels = torch.cat([batches[step]["labels"][:3] for step in range(per_epoch)])
    drawn = Counter(labels.tolist())
    held = Counter(speech.index["speaker"].tolist())
    assert all(drawn[label] <= held[label] for label in drawn)


def test_the_loop_trains_from_shards(folder, tmp_path):
    speech = ShardedSpeech(folder)
    batches = ShardPairs(speech, TINY_SPEC, RECIPE, 3, 24, 1)
    schedule = Schedule(24, rate=5e-3, frozen_stages=0, warmup_steps=3, judge_every=1)
    fit(tiny_encoder(), TINY_SPEC, batches, RECIPE, schedule, tmp_path, num_workers=0, judge=lambda model: {})
    rows = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    losses = [float(row["value"]) for row in rows if row["figure"] == "loss"]
    assert len(losses) == 24 and np.mean(losses[-8:]) < np.mean(losses[:8])


def test_too_few_groups_or_classes_are_refused(folder):
    speech = ShardedSpeech(folder)
    with pytest.raises(ValueError, match="fewer than the 99 pairs"):
        ShardPairs(speech, TINY_SPEC, RECIPE, 99, 1, 1)
    with pytest.raises(ValueError, match="a class for each of 5 speakers, got 4"):
        ShardPairs(speech, TINY_SPEC, RECIPE, 1, 1, 1, centres=np.zeros((4, 16), np.float32))


# Memory


def generate(folder, shards, groups=6, clips=4, seconds=1.0):
    """Shards of noise, written group by group as `write_shards` does, without decoding files first."""
    from pathlib import Path

    from train.shards import _write_index, _Writer

    folder.mkdir()
    rng = np.random.default_rng(0)
    writer = _Writer(folder, 0, "generated", groups * clips * seconds / 3600)
    for number in range(shards * groups):
        speaker = f"n-{number % 50}"
        sounds = rng.integers(-3000, 3000, (clips, round(16000 * seconds))).astype("<i2")
        members = [(Clip(Path(f"a/b/{number}-{k}"), "n", speaker), sound) for k, sound in enumerate(sounds)]
        writer.add(members)
    writer.drop()  # the last shard is full, the next one empty
    _write_index(folder)
    return ShardedSpeech(folder)


def peak_while(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_stays_flat_however_many_shards_are_written_and_read(tmp_path):
    peaks, sizes = {}, {}
    for name, shards in (("few", 2), ("many", 12)):
        folder = tmp_path / name
        writing = peak_while(lambda f=folder, s=shards: generate(f, s))
        speech = ShardedSpeech(folder)
        streaming = peak_while(lambda s=speech: [len(group) for group in s.stream(0, 0)])
        batches = ShardPairs(speech, TINY_SPEC, RECIPE, 4, 12, 0)
        training = peak_while(lambda b=batches: [b[step]["labels"] for step in range(12)])
        peaks[name] = np.array([writing, streaming, training])
        sizes[name] = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert sizes["many"] > 5 * sizes["few"]
    assert (peaks["many"] < 1.25 * peaks["few"] + 200_000).all(), peaks
    assert (peaks["many"] < sizes["many"] / 4).all(), (peaks, sizes)


def test_the_index_of_voxceleb_would_take_a_few_megabytes():
    groups = -(-1_200_000 // 8)
    assert groups * INDEX.itemsize < 4e6


def test_labels_of_a_shard_are_json_for_any_reader(folder):
    with tarfile.open(sorted(folder.glob("*.tar"))[0]) as tar:
        info = next(info for info in tar if info.name.endswith(".json"))
        values = json.loads(tar.extractfile(info).read())
    assert set(values) == {field.name for field in dataclasses.fields(ShardClip)}


def test_command_writes_shards(clips, tmp_path, capsys):
    table = tmp_path / "toy.csv"
    table.write_text("path,speaker\n" + "".join(f"{clip.path},{clip.speaker}\n" for clip in clips))
    command = ["prepare", "toy", "--csv", str(table), "-o", str(tmp_path), "--shard-hours", "0.002", "--workers", "1"]
    assert main(command) == 0
    assert "31 clips, 1 skipped" in capsys.readouterr().out
    assert len(ShardedSpeech(tmp_path / "toy")) == 7
    assert main([*command[:-3], "0", "--workers", "1"]) == 1
    assert "more than 0 hours" in capsys.readouterr().err
