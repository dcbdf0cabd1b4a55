"""Coverage: how far a profile reaches, from its speech alone, and the one prompt that would help most."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.calibration import Calibration
from emoinv_edge.cli import main
from emoinv_edge.coverage import coverage_of, next_prompt
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.prompts import PROMPTS, languages, read_prompts
from emoinv_edge.quality import SpeechQuality
from tests.builders import ANA_HZ, RATE, build_encoder, calibration, in_file, quality, synthesise

FLAT = (0.0,) * 8
RATES = ((0.0, 0.5), (0.5, 0.3), (0.9, 0.2))


def spoken(effort: float = 0.0, semitones: float = 0.0, bright: float = 0.0) -> SpeechQuality:
    """An utterance that lies so far above the first in each measure."""
    shape = (bright, *FLAT[1:])
    return quality(
        tilt_db=-10.0 + effort, log_f0_mean=4.8 + semitones * math.log(2.0) / 12.0, log_f0_std=0.0, envelope=shape
    )


def test_spans_are_from_the_least_to_the_most() -> None:
    found = coverage_of([spoken(), spoken(effort=3.0, semitones=-2.0), spoken(effort=-1.5, semitones=4.0, bright=2.0)])
    assert found is not None and found.frr is None
    assert (found.effort_db, found.f0_semitones, found.brightness_db) == pytest.approx((4.5, 6.0, 2.0))
    assert found.share == pytest.approx((0.5 + 0.5 + 1 / 3) / 3)


def test_one_utterance_covers_its_own_intonation_alone() -> None:
    found = coverage_of([quality(log_f0_std=math.log(2.0) / 12.0)])
    assert found is not None
    assert (found.effort_db, found.brightness_db) == (0.0, 0.0) and found.f0_semitones == pytest.approx(2.0)
    assert coverage_of([]) is None


def test_whispers_and_profiles_without_envelopes_have_a_coverage_too() -> None:
    found = coverage_of([quality(log_f0_mean=None, log_f0_std=0.0, tilt_db=0.0)] * 2)
    assert found is not None and found.share == 0.0 and found.prompt in PROMPTS


@pytest.mark.parametrize(
    ("utterances", "prompt"),
    [
        ([spoken()], "call"),
        ([spoken(), spoken(effort=6.0, bright=8.0)], "excited"),
        ([spoken(), spoken(semitones=13.0, bright=8.0)], "call"),
        ([spoken(), spoken(semitones=13.0, bright=8.0, effort=5.0)], "soft"),
        ([spoken(), spoken(semitones=7.0, bright=8.0, effort=9.0)], "tired"),
        ([spoken(), spoken(semitones=13.0, effort=9.0)], "smiling"),
        ([spoken(), spoken(semitones=13.0, effort=9.0), spoken()], "annoyed"),
        ([spoken(), spoken(semitones=13.0, effort=9.0, bright=8.0)], "enough"),
    ],
)
def test_the_prompt_is_for_what_lacks_most_on_the_side_that_is_open(
    utterances: list[SpeechQuality], prompt: str
) -> None:
    found = coverage_of(utterances)
    assert found is not None and found.prompt == prompt
    assert next_prompt(utterances) == prompt


def test_an_enrolment_begins_with_normal_speech_and_never_asks_the_same_twice_running() -> None:
    assert next_prompt([]) == "normal"
    asked = "normal"
    for _ in range(6):
        following = next_prompt([spoken()], asked)
        assert following != asked
        asked = following


@settings(max_examples=60, deadline=None)
@given(
    reaches=st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=6),
    more=st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20)),
)
def test_one_more_utterance_never_covers_less(
    reaches: list[tuple[float, float, float]], more: tuple[float, float, float]
) -> None:
    held = calibration(coverage=RATES)
    before = coverage_of([spoken(*each) for each in reaches], held)
    after = coverage_of([spoken(*each) for each in [*reaches, more]], held)
    assert before is not None and after is not None and before.frr is not None and after.frr is not None
    assert 0.0 <= before.share <= after.share <= 1.0
    assert after.frr <= before.frr


def test_the_calibration_knows_what_coverage_is_worth() -> None:
    held = calibration(coverage=RATES)
    assert [held.expected_frr(share) for share in (0.0, 0.49, 0.5, 0.9, 1.0)] == [0.5, 0.5, 0.3, 0.2, 0.2]
    assert calibration().expected_frr(0.5) is None
    assert Calibration.from_json(held.to_json()) == held


@pytest.mark.parametrize(
    ("coverage", "word"),
    [
        (((0.1, 0.5),), "share of 0"),
        (((0.0, 0.5), (0.0, 0.4)), "should rise"),
        (((0.0, 0.5), (0.5, 0.6)), "should rise"),
        (((0.0, 1.5),), "from 0 to 1"),
        (((0.0, math.nan),), "from 0 to 1"),
    ],
)
def test_rates_that_make_no_sense_are_refused(coverage: tuple[tuple[float, float], ...], word: str) -> None:
    with pytest.raises(ModelFormatError, match=word):
        calibration(coverage=coverage)


@pytest.mark.parametrize("language", languages())
def test_every_language_has_every_prompt(language: str) -> None:
    prompts = read_prompts(language)
    assert tuple(prompts) == PROMPTS and len(set(prompts.values())) == len(PROMPTS)
    assert all(text == text.strip() and text.isprintable() and 10 <= len(text) <= 120 for text in prompts.values())


def test_there_are_prompts_in_six_languages_and_no_path_is_one() -> None:
    assert {"en", "de", "es", "fr", "zh", "hi"} <= set(languages())
    with pytest.raises(ValueError, match="expected a language"):
        read_prompts("../prompts/en")


def test_enrolment_and_the_profile_both_say_what_is_covered_and_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_encoder(tmp_path / "tiny.onnx", metadata=in_file(calibration(coverage=RATES)))
    other = build_encoder(tmp_path / "other.onnx", metadata=in_file(calibration()), seed=3)
    files = []
    for seed in (1, 2):
        files.append(str(tmp_path / f"{seed}.wav"))
        soundfile.write(files[-1], np.asarray(synthesise(3.0, seed, ANA_HZ)), RATE)
    options = ["--store", str(tmp_path / "profiles.db"), "--plaintext"]
    own = [*options, "--model", str(model)]
    assert main(["enroll", "ana", *files, "--lang", "de", *own]) == 0
    out = capsys.readouterr().out
    assert "It covers " in out and "rejects about 50%" in out and "What would help most: Jetzt " in out
    assert main(["profiles", "show", "ana", "--lang", "fr", *own]) == 0
    shown = capsys.readouterr().out
    assert "rejects about 50%" in shown and "What would help most: Maintenant" in shown
    assert main(["profiles", "show", "ana", "--json", *own]) == 0
    covered = json.loads(capsys.readouterr().out)["coverage"]
    assert covered["frr"] == 0.5 and covered["prompt_text"] == read_prompts("en")[covered["prompt"]]
    assert main(["profiles", "show", "ana", "--json", *options, "--model", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"]["frr"] is None
    assert main(["enroll", "bob", *files, "--lang", "xx", *own]) == 3
    assert "expected a language of" in capsys.readouterr().err
