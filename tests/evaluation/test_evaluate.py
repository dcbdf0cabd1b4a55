"""``python -m train evaluate``: sets and models, several processes, and what is printed."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import soundfile

from emoinv_edge.encoder import Encoder
from tests.builders import TINY_SPEC, build_encoder, in_file, synthesise
from tests.evaluation.population import CALIBRATION, Clip
from train.__main__ import main
from train.commands.evaluate import evaluate_model
from train.evaluation.clips import open_set
from train.evaluation.embeddings import EmbeddingCache
from train.evaluation.protocols import PROTOCOLS, evaluate_embeddings

VOICES = {"low": 105.0, "middle": 140.0, "high": 190.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three voices, five neutral clips and three of each other emotion (at another pitch)."""
    root = tmp_path_factory.mktemp("speech") / "voices"
    root.mkdir()
    rows = []
    for number, (name, f0) in enumerate(VOICES.items()):
        for emotion, count, factor in (("neutral", 5, 1.0), ("angry", 3, 1.06), ("sad", 3, 0.96)):
            for take in range(count):
                path = f"{name}-{emotion}-{take}.wav"
                wave = synthesise(1.6, 100 * number + 10 * len(emotion) + take, f0 * factor)
                soundfile.write(root / path, wave, 16000)
                rows.append((path, name, "female", emotion, 1.6))
    with open(root / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "speaker", "gender", "emotion", "seconds"), *rows])
    return root


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    return build_encoder(tmp_path_factory.mktemp("model") / "tiny.onnx", metadata=in_file(CALIBRATION))


def test_evaluating_a_folder_equals_embedding_its_clips_by_hand(folder, tiny_encoder_path, tmp_path):
    results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path)
    encoder = Encoder(tiny_encoder_path)
    rows = list(csv.DictReader(io.StringIO((folder / "manifest.csv").read_text())))
    embeddings = [encoder.embed(*soundfile.read(folder / row["path"], dtype="float32")).vector for row in rows]
    clips = [Clip(row["speaker"], row["gender"], row["emotion"]) for row in rows]
    by_hand = evaluate_embeddings(np.array(embeddings), clips)
    for protocol in PROTOCOLS:
        assert results["sets"]["voices"][protocol]["eer"] == by_hand[protocol]["eer"]
        assert results["sets"]["voices"][protocol]["targets"] == by_hand[protocol]["targets"] > 0


def test_a_second_evaluation_embeds_nothing(folder, tiny_encoder_path, tmp_path, monkeypatch):
    first = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path)
    monkeypatch.setattr(Encoder, "embed", lambda *_: pytest.fail("embedded again"))
    assert evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path) == first


def test_a_large_set_is_thinned_before_it_is_embedded(folder, tiny_encoder_path, tmp_path):
    results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path, max_clips=18)
    result = results["sets"]["voices"]
    assert (result["clips"], result["clips_used"]) == (33, 18) and result["pairs"]["targets"] > 0
    with EmbeddingCache(tmp_path, results["fingerprint"], TINY_SPEC.embedding_dim) as cache:
        assert len(cache) == 18


def test_ranks_share_the_clips_and_rank_0_reports(folder, tiny_encoder_path, tmp_path, monkeypatch):
    alone = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path / "alone")
    monkeypatch.setattr("train.distributed.barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path / "shared")
        counts.append(next((tmp_path / "shared").glob(f"*-rank{rank}.bin")).stat().st_size)
        assert (results is None) == (rank == "1")
    assert results == alone
    assert abs(counts[0] - counts[1]) <= 16 + 4 * TINY_SPEC.embedding_dim


def test_a_checkpoint_is_evaluated_like_a_model_file(folder, tmp_path):
    import torch

    from train.model import EncoderShape, ResidualEncoder, save_checkpoint

    torch.manual_seed(0)
    shape = EncoderShape((1, 1), (4, 8), ((1, 1), (2, 2)), (2, 2), 80, 32)
    save_checkpoint(tmp_path / "best.pt", ResidualEncoder(shape), TINY_SPEC)
    results = evaluate_model(tmp_path / "best.pt", [folder], resamples=0, cache_folder=tmp_path)
    assert 0.0 <= results["sets"]["voices"]["pairs"]["eer"] <= 1.0
    assert results["model"] == "best.pt"


@pytest.mark.parametrize(
    "text, message",
    [
        ("speaker,emotion\n", r"columns path, speaker and emotion; \['path'\] missing"),
        ("path,speaker,emotion\n", "a header and no clips"),
    ],
)
def test_a_broken_manifest_is_refused_with_what_is_wrong(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_set(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with manifest\.csv"):
        open_set(tmp_path / "nowhere")


def test_a_clip_that_cannot_be_read_is_named(tmp_path, tiny_encoder_path):
    (tmp_path / "manifest.csv").write_text("path,speaker,emotion\nbroken.wav,a,neutral\n")
    (tmp_path / "broken.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"clip broken\.wav: "):
        evaluate_model(tiny_encoder_path, [tmp_path], cache_folder=tmp_path)


def test_a_prepared_set_is_opened_too(tmp_path):
    from train.corpora import Clip as CorpusClip
    from train.prepare import prepare

    for take in range(2):
        soundfile.write(tmp_path / f"{take}.wav", synthesise(1.0, take), 16000)
    prepare([CorpusClip(tmp_path / f"{take}.wav", "c", f"c-{take}") for take in range(2)], tmp_path / "set", 1)
    opened = open_set(tmp_path / "set")
    assert [clip.speaker for clip in opened.clips] == ["c-0", "c-1"]
    assert opened.clips[0].seconds == pytest.approx(len(opened.waveform(0)) / 16000)


def test_command_prints_the_table_and_json(folder, calibrated, tmp_path, capsys):
    options = [str(calibrated), str(folder), "--cache", str(tmp_path), "--resamples", "20"]
    assert main(["evaluate", *options]) == 0
    out = capsys.readouterr().out
    assert "voices  pairs" in out and "Cllr" in out
    assert main(["evaluate", *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fingerprint"] == Encoder(calibrated).fingerprint
    assert values["sets"]["voices"]["llr"]["enrol"]["cllr"] >= values["sets"]["voices"]["llr"]["enrol"]["min_cllr"]


def test_command_reports_in_one_line_what_is_broken(folder, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "none.onnx"), str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("python -m train evaluate: ") and "no such model" in err and len(err.splitlines()) == 1
    (tmp_path / "text.onnx").write_text("no model")
    assert main(["evaluate", str(tmp_path / "text.onnx"), str(folder)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sets_of_one_name_are_refused(folder, tiny_encoder_path, capsys):
    assert main(["evaluate", str(tiny_encoder_path), str(folder), str(folder)]) == 1
    assert "rename one or give it once" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    for command in ("evaluate", "calibration"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"python -m train {command} " in capsys.readouterr().out
