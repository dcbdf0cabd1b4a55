"""The paper in a dry run: generated corpora in the layouts of VoxCeleb and Dusha, one command, its table."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile
import torch

from tests.builders import synthesise
from tests.training import TINY_SHAPE, TINY_SPEC
from train import ablation
from train import pretrain as pretraining
from train.__main__ import main
from train.corpora import clips_of
from train.prepare import PreparedSet
from train.pretrain import Stage

STAGES = (
    Stage("aam", 2, 8, 0.4, 0.05, 1e-3, 0.1, 0.2, 0.2, 0.5),
    Stage("margin", 1, 4, 0.5, 1e-3, 1e-4, 0.2, 0.5),
)


def write(path, seed, pitch):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.float32(synthesise(0.6, seed, pitch)), 16000, subtype="PCM_16")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """VoxCeleb 1 with a test speaker, one speaker of VoxCeleb 2, and Dusha's crowd."""
    root = tmp_path_factory.mktemp("corpora")
    for number, speaker in enumerate(("id10001", "id10002", "id10003", "id10270")):
        for take in range(3):
            write(
                root / "VoxCeleb1" / "wav" / speaker / "1zcIwhmdeo4" / f"0000{take}.wav",
                10 * number + take,
                90 + 30 * number,
            )
    for take in range(3):
        write(root / "VoxCeleb2" / "dev" / "aac" / "id00012" / "21Uxsk56VDQ" / f"0000{take}.wav", 70 + take, 230)
    for part, speakers in (("crowd_train", range(6)), ("crowd_test", range(6, 8))):
        rows = ["hash_id\taudio_path\tduration\tannotator_emo\tgolden_emo\tspeaker_text\tspeaker_emo\tsource_id"]
        for speaker in speakers:
            for take, emotion in enumerate(("neutral", "angry", "sad", "positive")):
                name = f"{speaker:02d}{take}abcdef"
                write(root / "crowd" / part / "wavs" / f"{name}.wav", 5 * speaker + take, 80 + 20 * speaker)
                rows += [
                    f"{name}\twavs/{name}.wav\t0.6\t{label}\t\tда\t{emotion}\t{speaker}" for label in ("sad", emotion)
                ]
        (root / "crowd" / part / f"raw_{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def tiny(monkeypatch):
    """The whole way at a size that takes seconds."""
    monkeypatch.setattr(pretraining, "STAGES", STAGES)
    monkeypatch.setattr(pretraining, "SHAPE", TINY_SHAPE)
    monkeypatch.setattr(pretraining, "SPEC", TINY_SPEC)
    monkeypatch.setattr(ablation, "DEVELOPMENT_FRAMES", 40)


def command(corpora, out, *more):
    given = ["paper", "--voxceleb", str(corpora / "VoxCeleb1"), str(corpora / "VoxCeleb2")]
    given += ["--dusha", str(corpora / "crowd"), "-o", str(out), "--rooms", "0", "--batch", "8"]
    return [*given, "--steps", "2", "--pairs", "2", "--seeds", "1", "--workers", "0", *more]


def test_one_command_makes_the_table_and_a_second_call_goes_on_from_what_is_there(corpora, tiny, tmp_path, capsys):
    out = tmp_path / "paper"
    assert main(command(corpora, out, "--prepare-only")) == 0
    assert not (out / "pretrain").exists() and sorted(path.name for path in (out / "prepared").iterdir()) == [
        "dusha", "voxceleb",
    ]  # fmt: skip
    assert main(command(corpora, out)) == 0
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    lines = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert lines[8:] == ["arm", "+copypaste", "+cosine", "+masking", "no-copypaste", "random-mask"]
    assert lines[:8] == ["arm", "start", "aam", "+copypaste", "+cosine", "+masking", "random-mask", "no-copypaste"]
    assert "dusha EER %" in table

    with open(out / "ablation" / "results.csv", newline="", encoding="utf-8") as file:
        kept = [row for row in csv.DictReader(file) if row["arm"] != "+masking"]
    with open(out / "ablation" / "results.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, kept[0])
        rows.writeheader()
        rows.writerows(kept)
    capsys.readouterr()
    assert main(command(corpora, out)) == 0
    said = capsys.readouterr().err
    assert "1 runs to go" in said and "pretrain" not in said and "prepare" not in said
    assert (out / "table.md").read_text(encoding="utf-8").count("\n") == table.count("\n")

    learnt = torch.load(out / "pretrain" / "aam" / "last.pt", weights_only=True)["module"]["softmax.weight"]
    assert len(learnt) == 3 * 4  # four speakers at three speeds: the test speaker is left out


def test_the_corpora_are_read_in_their_published_layouts(corpora):
    voxceleb = [clip for part in ("VoxCeleb1", "VoxCeleb2") for clip in clips_of("voxceleb", corpora / part)]
    assert len(voxceleb) == 15 and len({clip.speaker for clip in voxceleb}) == 5
    dusha = clips_of("dusha", corpora / "crowd")
    assert len(dusha) == 32 and {clip.emotion for clip in dusha} == {"neutral", "angry", "sad", "happy"}


def test_ranks_do_not_prepare(corpora, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(corpora, tmp_path)) == 1
    assert "call this without torchrun and with --prepare-only" in capsys.readouterr().err


def test_pairs_that_the_ranks_cannot_share_are_refused(corpora, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command(corpora, tmp_path), "--pairs", "3"]) == 1
    assert "--pairs of 2 or more that 2 ranks share evenly, got 2 and 3" in capsys.readouterr().err


def test_what_is_prepared_is_read_from_shards(corpora, tiny, tmp_path):
    assert main(command(corpora, tmp_path, "--prepare-only")) == 0
    clips = PreparedSet(tmp_path / "prepared" / "voxceleb")
    assert "voxceleb-id10270" in clips.held_out and {clips.clips[i].speaker for i in clips.unheard()} == {
        "voxceleb-id10270"
    }
    assert (tmp_path / "prepared" / "voxceleb" / "shard-000000.tar").is_file()
