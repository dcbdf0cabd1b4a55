"""What enrolment is worth: profiles of several kinds, one attempt and two, in emotions that nobody enrolled."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import soundfile

from emoinv_edge.calibration import SessionRise
from emoinv_edge.decision import Verdict
from emoinv_edge.verifier import Verifier
from tests.builders import NOW, RATE, build_encoder, calibration, in_file, quality, synthesise
from tests.evaluation.population import Clip
from train.__main__ import main
from train.evaluation.embeddings import Heard, unit
from train.evaluation.enrolment import DESIGNS, evaluate_enrolment, format_enrolment

MEASURED = calibration(session_rises=(SessionRise(2, (0.01,), (0.3,)),))
COUNTS = {"neutral": 5, "calm": 3, "happy": 3, "angry": 3, "sad": 4, "fearful": 4}


def spoken(speakers: int = 8, seed: int = 2, dim: int = 12) -> tuple[list[Clip], list[Heard | None]]:
    """Speakers whose emotions all move their embeddings along few directions, so that variety helps."""
    rng = np.random.default_rng(seed)
    clips: list[Clip] = []
    heard: list[Heard | None] = []
    drift = {emotion: rng.normal(0, 1, dim) for emotion in COUNTS}
    drift["sad"] = drift["happy"] + 0.5 * drift["calm"]
    for s in range(speakers):
        centre = rng.normal(0, 1.2, dim)
        for emotion, count in COUNTS.items():
            for _ in range(count):
                vector = unit((centre + (emotion != "neutral") * drift[emotion] + rng.normal(0, 0.4, dim))[None])[0]
                clips.append(Clip(f"s{s}", ("male", "female")[s % 2], emotion))
                heard.append(Heard(quality(), vector))
    return clips, heard


def test_the_table_has_every_design_and_tests_only_emotions_that_none_holds() -> None:
    clips, heard = spoken()
    found = evaluate_enrolment(heard, clips, MEASURED)
    assert found is not None
    assert found["tested"] == ["fearful", "sad"] and found["speakers"] == 8
    assert found["tests"] == 8 * 8 and found["sessions"] == 8 * 2 * 6
    assert set(found["designs"]) == set(DESIGNS)
    varied, neutral = found["designs"]["1 in each of 4 emotions"], found["designs"]["4 neutral"]
    assert varied["one"]["frr"] < neutral["one"]["frr"]
    for figures in found["designs"].values():
        assert figures["either"]["frr"] <= figures["one"]["frr"] and figures["either"]["far"] >= figures["one"]["far"]


def test_sessions_are_scored_as_the_runtime_scores_them(tiny_encoder) -> None:
    clips, heard = spoken(speakers=4)
    found = evaluate_enrolment(heard, clips, MEASURED)
    assert found is not None
    from emoinv_edge.profiles import Exemplar, Profile

    def verifier(speaker: str) -> Verifier:
        neutral = [i for i, clip in enumerate(clips) if clip.speaker == speaker and clip.emotion == "neutral"][:4]
        exemplars = tuple(Exemplar(heard[i].embedding, heard[i].quality, NOW) for i in neutral)
        return Verifier(tiny_encoder, Profile(speaker, tiny_encoder.fingerprint, exemplars, NOW), calibration=MEASURED)

    accepted = []
    for speaker in ("s0", "s1", "s2", "s3"):
        for emotion in ("sad", "fearful"):
            own = [i for i, clip in enumerate(clips) if clip.speaker == speaker and clip.emotion == emotion]
            for first, second in [(a, b) for k, a in enumerate(own) for b in own[k + 1 :]]:
                session = verifier(speaker).session()
                session.take(heard[first].embedding, heard[first].quality, at_s=0.0)
                last = session.take(heard[second].embedding, heard[second].quality, at_s=1.0)
                accepted.append(last.verdict is Verdict.ACCEPT)
    assert found["designs"]["4 neutral"]["session"]["frr"] == pytest.approx(1.0 - np.mean(accepted))


def test_intervals_are_over_the_speakers_and_hold_the_rates() -> None:
    clips, heard = spoken()
    found = evaluate_enrolment(heard, clips, MEASURED, resamples=200)
    assert found is not None
    for figures in found["designs"].values():
        for kind in figures.values():
            for rate in ("frr", "far"):
                low, high = kind[f"{rate}_interval"]
                assert 0.0 <= low <= kind[rate] <= high <= 1.0
    table = format_enrolment({"toy": found})
    assert table.count("| 4 neutral |") == 1 and "toy: 8 speakers" in table


def test_without_thresholds_of_sessions_the_table_has_none() -> None:
    clips, heard = spoken()
    found = evaluate_enrolment(heard, clips, calibration())
    assert found is not None
    assert all("session" not in figures for figures in found["designs"].values())


def test_a_set_that_lacks_an_enrolled_emotion_gets_more_neutral_clips() -> None:
    clips, heard = spoken()
    kept = [i for i, clip in enumerate(clips) if clip.emotion != "calm"]
    found = evaluate_enrolment([heard[i] for i in kept], [clips[i] for i in kept], MEASURED)
    assert found is not None and found["speakers"] == 8


def test_speakers_who_cannot_be_enrolled_in_each_way_take_no_part() -> None:
    clips, heard = spoken()
    for i, clip in enumerate(clips):
        if clip.speaker == "s0" and clip.emotion == "happy":
            heard[i] = None
        if clip.speaker == "s1" and clip.emotion == "neutral":
            heard[i] = dataclasses.replace(heard[i], quality=quality(net_speech_s=0.9))
    found = evaluate_enrolment(heard, clips, MEASURED)
    assert found is not None and found["speakers"] == 6
    assert evaluate_enrolment([None] * len(clips), clips, MEASURED) is None
    plain = [dataclasses.replace(clip, emotion="neutral") for clip in clips]
    assert evaluate_enrolment(heard, plain, MEASURED) is None


def test_the_command_prints_the_table_and_json_and_refuses_what_does_not_go_with_it(tmp_path, capsys) -> None:
    model = build_encoder(tmp_path / "tiny.onnx", metadata=in_file(MEASURED))
    folder = tmp_path / "voices"
    folder.mkdir()
    rows = []
    for number, (name, f0) in enumerate({"low": 105.0, "high": 190.0}.items()):
        for emotion, count in {"neutral": 6, "happy": 2, "angry": 2, "sad": 2}.items():
            for take in range(count):
                path = f"{name}-{emotion}-{take}.wav"
                wave = synthesise(1.6, 100 * number + 10 * len(emotion) + take, f0)
                soundfile.write(folder / path, wave, RATE)
                rows.append((path, name, "female", emotion, 1.6))
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "speaker", "gender", "emotion", "seconds"), *rows])
    options = ["evaluate", str(model), str(folder), "--cache", str(tmp_path), "--enrolment", "--resamples", "20"]
    assert main(options) == 0
    assert "| 2 in each of 4 emotions |" in capsys.readouterr().out
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sets"]["voices"]
    assert found["clips"] == 24 and found["enrolment"]["tested"] == ["sad"]
    assert main([*options, "--no-llr"]) == 1
    assert "leave --report and --no-llr out" in capsys.readouterr().err
    bare = build_encoder(tmp_path / "bare.onnx")
    assert main(["evaluate", str(bare), *options[2:]]) == 1
    assert "expected a model file with a calibration" in capsys.readouterr().err
