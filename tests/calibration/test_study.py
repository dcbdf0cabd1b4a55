"""Judging a calibration: what is printed is what was measured, and each corpus is judged by the others."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import Calibration, FarTable, Moods, Term
from tests.conftest import build_encoder, synthesise, write_moody_corpus
from train import calibrate
from train.__main__ import main
from train.calibrate import DevelopmentSpeech
from train.enrolment import refusals, second_voices
from train.prepare import PreparedClip, PreparedSet
from train.study import format_study, study

CALIBRATION = Calibration(
    "centroid", -7.0, (Term("cosine", 14.0, -1.0, 1.0),), (FarTable(1, (0.5, 0.01), (-2.0, 2.0)),), 300, "made up"
)
RATE = 16000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.onnx"
    return build_encoder(path, metadata={"emoinv.calibration": json.loads(CALIBRATION.to_json())})


@pytest.fixture(scope="module")
def two_corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora of nine speakers a fifth apart, six neutral clips and three in a raised voice each."""

    def voice(number: int, speaker: int, take: int, moody: bool) -> NDArray[np.float32]:
        pitch = 80.0 * 1.22**speaker * (1.04 if moody else 1.0)
        return synthesise(1.6, 1000 * number + 10 * speaker + take, pitch)

    folder = tmp_path_factory.mktemp("study")
    return [
        write_moody_corpus(folder / name, name, 9, "female", functools.partial(voice, number))
        for number, name in enumerate(("ased", "nemo"))
    ]


def test_the_command_judges_each_corpus_by_the_other_and_prints_what_it_found(
    model: Path, two_corpora: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "LEGIBLE_EER", 1.0)
    arguments = ["calibration", str(model), *map(str, two_corpora), "--terms", "norm", "--tries", "4"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["terms"] == ["cosine", "norm_above", "norm_below"]
    for kind in ("clean", "noisy"):
        for label in ("cosine", "all"):
            assert set(found["left_out"][kind][label]) == set(found["one_threshold"][kind][label]) == {"ased", "nemo"}
    clean, noisy = (found["left_out"][kind]["cosine"]["ased"] for kind in ("clean", "noisy"))
    assert clean["targets"] == 18 and noisy["eer"] >= clean["eer"]
    assert found["adaptation"] == {}  # nine clips a speaker are too few to rehearse a thousand sessions
    assert found["refusals"]["nemo"]["others"] > 0.5 > found["refusals"]["nemo"]["own_neutral"]
    whole = found["together"]["clean"]["cosine"]
    ranked = found["left_out"]["clean"]["cosine"]
    assert whole["targets"] == calibrate.DRAWS * sum(figures["targets"] for figures in ranked.values())
    assert 0.0 <= whole["min_cllr"] <= whole["cllr"] + 1e-9
    table = format_study(found)
    assert f"{100 * whole['eer']:.2f} / {100 * whole['frr_at_1']:.1f} / {whole['cllr']:.3f}" in table
    assert f"{100 * found['refusals']['nemo']['others']:.1f}" in table
    assert f"{100 * clean['eer']:.2f} / {100 * clean['frr_at_1']:.1f}" in table
    assert "nan" not in table


def test_another_term_a_negative_count_and_a_model_without_scores_are_refused(
    model: Path, two_corpora: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = list(map(str, two_corpora))
    assert main(["calibration", str(model), *sets, "--terms", "mood"]) == 1
    assert "no term mood" in capsys.readouterr().err
    assert main(["calibration", str(model), *sets, "--tries", "-1"]) == 1
    assert "--tries" in capsys.readouterr().err
    assert main(["calibration", str(model), *sets, "--terms", "mood_shift"]) == 1
    assert "knows none" in capsys.readouterr().err
    bare = build_encoder(tmp_path / "bare.onnx")
    assert main(["calibration", str(bare), *sets]) == 1
    assert "expected a model with a calibration" in capsys.readouterr().err


def vectors(count: int, seed: int, centre: NDArray[np.float32], spread: float) -> NDArray[np.float32]:
    found = centre + spread * np.random.default_rng(seed).standard_normal((count, len(centre)))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def test_strangers_are_refused_in_enrolment_and_copies_in_noise_are_never_offered() -> None:
    quality = SpeechQuality(3.0, 30.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.5)
    axes = np.eye(24, dtype=np.float32)
    clips, embeddings = [], []
    for speaker in range(4):
        embeddings.append(vectors(6, speaker, axes[speaker], 0.02))
        clips += [PreparedClip("c", f"s{speaker}", "male", "neutral", "", 0, 0, "") for _ in range(6)]
    plain = DevelopmentSpeech(clips, np.concatenate(embeddings), [quality] * 24, range(24))
    assert dataclasses.astuple(refusals(plain, CALIBRATION))[1:] == (0.0, 1.0, 4 * 4 * 5 + 4 * 4 * 18)
    assert math.isnan(refusals(plain, CALIBRATION).own_emotional)
    again = np.concatenate((plain.embeddings, -plain.embeddings))
    noisy = DevelopmentSpeech([*clips, *clips], again, [quality] * 48, [*range(24), *range(24)])
    assert refusals(noisy, CALIBRATION).own_neutral == 0.0


def test_two_voices_in_one_recording_are_found_more_often_than_one(model: Path, two_corpora: list[Path]) -> None:
    found = second_voices(Encoder(model), PreparedSet(two_corpora[0]), tries=8)
    assert found.tries > 0
    assert found.two_voices > found.one_voice


def test_without_noise_nothing_is_said_of_noise(
    model: Path, two_corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "LEGIBLE_EER", 1.0)
    said: list[str] = []
    found = study(Encoder(model), [PreparedSet(path) for path in two_corpora], (), tries=0, sessions=0, say=said.append)
    assert found["left_out"]["noisy"] == {} and found["second_voices"] == {}
    assert "noisy" not in format_study(found)
    assert said[:2] == ["measure ased", "measure nemo"]


def test_a_corpus_whose_moods_gave_directions_is_judged_without_them(
    two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "LEGIBLE_EER", 1.0)
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 2)))[0].T.astype("<f4")
    beside = dataclasses.replace(CALIBRATION, moods=Moods(rows.tobytes(), (0.5, 0.5), rows[0].tobytes()))
    metadata = {
        "emoinv.calibration": json.loads(beside.to_json()),
        "emoinv.provenance": {"calibration_moods": ["ased", "elsewhere"]},
    }
    model = build_encoder(tmp_path / "beside.onnx", metadata=metadata)
    asked: list[tuple[str, ...]] = []
    taught: list[set[str]] = []

    def learn(speech: DevelopmentSpeech, trials: Any, corpora: Any, names: Any, count: int) -> Moods:
        asked.append((*corpora, count))
        taught.append({each.corpus for each in trials})
        return calibrate.learn_moods(speech, trials, corpora, names, count)

    monkeypatch.setattr("train.study.learn_moods", learn)
    said: list[str] = []
    found = study(Encoder(model), [PreparedSet(path) for path in two_corpora], (), tries=0, sessions=0, say=said.append)
    # For nemo, of ased alone, and for the choice of terms; ased, left out of the moods, has no other to give any.
    assert asked == [("ased", 2)] * 2 and taught == [{"ased"}, {"ased", "nemo"}]
    assert found["moods"] == ["ased"]
    assert any(line.startswith("leave out ased:") for line in said)
    ranked = found["left_out"]["clean"]
    assert list(ranked) == ["cosine", "cosine beside moods", "all"]
    assert all(set(figures) == {"ased", "nemo"} for figures in ranked.values())
    assert ranked["cosine beside moods"]["ased"] == ranked["cosine"]["ased"] != ranked["cosine"]["nemo"]
    assert "beside the moods of ased" in format_study(found)
    assert "Cllr of the corpora left out" not in format_study(found | {"steps": []})
