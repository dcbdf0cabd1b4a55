"""Judging a calibration: what is printed is what was measured, and each corpus is judged by the others."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, EmotionAxis
from emoinv_edge.encoder import Encoder
from tests.builders import build_encoder, calibration, emotion_axis, in_file, synthesise, write_emotional_corpus
from tests.calibration.development import speech, through_all
from train.__main__ import main
from train.calibration.bands import by_condition
from train.calibration.emotion_axis import fit_axis
from train.calibration.speech import DevelopmentSpeech
from train.calibration.study import enrolment_left_out, format_study, study
from train.calibration.trials import DRAWS, Evidence, channel_trials, draw_trials, teaching_trials
from train.prepare import PreparedSet

CALIBRATION = calibration()


@pytest.fixture(autouse=True)
def every_corpus_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny encoder confuses more neutral voices than a corpus may to be fitted on."""
    monkeypatch.setattr("train.calibration.trials.LEGIBLE_EER", 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.onnx"
    return build_encoder(path, metadata=in_file(CALIBRATION))


@pytest.fixture(scope="module")
def two_corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora of nine speakers a fifth apart, six neutral clips and three in a raised voice each."""

    def voice(number: int, speaker: int, take: int, emotional: bool) -> NDArray[np.float32]:
        pitch = 80.0 * 1.22**speaker * (1.04 if emotional else 1.0)
        return synthesise(1.6, 1000 * number + 10 * speaker + take, pitch)

    folder = tmp_path_factory.mktemp("study")
    return [
        write_emotional_corpus(folder / name, name, 9, "female", functools.partial(voice, number))
        for number, name in enumerate(("ased", "nemo"))
    ]


def test_the_command_judges_each_corpus_by_the_other_and_prints_what_it_found(
    model: Path, two_corpora: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert whole["targets"] == DRAWS * sum(figures["targets"] for figures in ranked.values())
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
    assert main(["calibration", str(model), *sets, "--terms", "anger"]) == 1
    assert "no term anger" in capsys.readouterr().err
    assert main(["calibration", str(model), *sets, "--tries", "-1"]) == 1
    assert "--tries" in capsys.readouterr().err
    assert main(["calibration", str(model), *sets, "--terms", "emotion_shift"]) == 1
    assert "has none" in capsys.readouterr().err
    bare = build_encoder(tmp_path / "bare.onnx")
    assert main(["calibration", str(bare), *sets]) == 1
    assert "expected a model with a calibration" in capsys.readouterr().err


def test_without_noise_nothing_is_reported_of_noise(
    model: Path, two_corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    found = study(
        Encoder(model), [PreparedSet(path) for path in two_corpora], (), tries=0, sessions=0, report=lines.append
    )
    assert found["left_out"]["noisy"] == {} and found["second_voices"] == {}
    assert "noisy" not in format_study(found)
    assert lines[:2] == ["measure ased", "measure nemo"]


def test_a_corpus_that_gave_the_emotion_axis_is_judged_by_an_axis_of_the_others(
    two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along = dataclasses.replace(CALIBRATION, emotion_axis=emotion_axis(np.eye(32)[0]))
    provenance = {"emoinv.provenance": {"calibration_axis": ["ased", "elsewhere"]}}
    model = build_encoder(tmp_path / "along.onnx", metadata=in_file(along) | provenance)
    asked: list[tuple[str, ...]] = []

    def fit(speech: DevelopmentSpeech, corpora: Sequence[str]) -> EmotionAxis:
        asked.append(tuple(corpora))
        return fit_axis(speech, corpora)

    monkeypatch.setattr("train.calibration.study.fit_axis", fit)
    lines: list[str] = []
    sets = [PreparedSet(path) for path in two_corpora]
    found = study(Encoder(model), sets, (), ["norm", "emotion_shift"], tries=0, sessions=0, report=lines.append)
    # For nemo, and for the choice of terms; ased, left out of the axis, has no other to give one.
    assert asked == [("ased",), ("ased",)] and found["axis_corpora"] == ["ased"]
    assert [line.split(" + ")[-1] for line in lines if "all" in line] == ["emotion_shift", "norm_below"]
    ranked = found["left_out"]["clean"]
    assert list(ranked) == ["cosine", "all"] and all(set(figures) == {"ased", "nemo"} for figures in ranked.values())
    assert "along the emotion axis of ased" in format_study(found)
    assert "Cllr of the corpora left out" not in format_study(found | {"steps": []})


def test_enrolment_is_judged_on_a_corpus_by_a_calibration_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = speech(5, 8, neutral=9, corpora=2)
    everyone, teaching = draw_trials(heard), teaching_trials(heard)
    fitted: list[set[str]] = []
    asked: list[float] = []

    def fit(of: DevelopmentSpeech, *parts: Sequence[Evidence] | Sequence[str], safety: float) -> Calibration:
        asked.append(safety)
        fitted.append({each.corpus for part in parts for each in part if isinstance(each, Evidence)})
        return CALIBRATION

    monkeypatch.setattr("train.calibration.study.fit_trials", fit)
    found = enrolment_left_out(heard, everyone, teaching, ("cosine",), (), ["corpus1"], resamples=0, safety=1.5)
    assert (
        fitted == [{"corpus0"}] and asked == [1.5] and set(found) == {"corpus1"} and found["corpus1"]["speakers"] == 8
    )
    with pytest.raises(ValueError, match="elsewhere: expected two speakers"):
        enrolment_left_out(heard, everyone, teaching, ("cosine",), (), ["elsewhere"])


def test_through_channels_each_corpus_is_judged_in_every_condition() -> None:
    heard = through_all(speech(2, 24, corpora=2))
    everyone, teaching = draw_trials(heard), teaching_trials(heard)
    rows = by_condition(everyone, channel_trials(heard), teaching, ("cosine",), heard)
    cells = [
        {"corpus": corpus, "enrolled": enrolled, "tested": tested, **figures}
        for (corpus, enrolled, tested), figures in rows.items()
    ]
    empty = {
        "terms": ["cosine"],
        "axis_corpora": [],
        "steps": [],
        "chosen": ["cosine"],
        "adaptation": {},
        "enrolment": {},
    }
    found = {**empty, "left_out": {}, "one_threshold": {}, "together": {}, "refusals": {}, "second_voices": {}}
    table = format_study(found | {"by_condition": cells})
    assert "| telephone / telephone | " in table and "| room / codec | " in table
    first = rows["corpus0", "clean", "telephone"]
    assert f"{100 * first['frr']:.1f} / {100 * first['far']:.2f}" in table
