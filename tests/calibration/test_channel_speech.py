"""Development speech through channels: what is enrolled and tried, and what a telephone's shift is fitted to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from emoinv_edge.calibration import Calibration
from tests.builders import RATE, synthesise
from tests.calibration.development import Clip, speech, through_all
from train.calibration.bands import by_condition, fit_conditions
from train.calibration.channels import CHANNELS, CONDITIONS, CorpusChannels, choose_parts
from train.calibration.fit import fit_speech
from train.calibration.trials import channel_trials, draw_trials, teaching_trials
from train.rooms import Room


def test_a_few_neutral_clips_are_enrolled_and_others_tried_in_turn() -> None:
    clips = [
        Clip("c", f"s{k}", "female", "neutral" if i < 6 else f"emotion{i % 3}") for k in range(70) for i in range(20)
    ]
    parts = choose_parts(clips, range(len(clips)))
    of = {clip: [part for part in parts if clips[part.index].speaker == clip] for clip in {c.speaker for c in clips}}
    chosen = [own for own in of.values() if own]
    assert len(chosen) == 60
    for own in chosen:
        enrolled = [part for part in own if part.role == "profile"]
        tests = [part for part in own if part.role == "test"]
        assert len(enrolled) == 4 and len({part.variant for part in enrolled}) == 1
        assert all(clips[part.index].emotion == "neutral" for part in enrolled)
        assert [part.variant for part in tests] == [0, 1, 0, 1, 0, 1]
        assert len({part.index for part in own}) == 10
    assert parts == choose_parts(clips, range(len(clips)))


@pytest.mark.parametrize(("neutral", "enrolled", "tests"), [(1, 1, 0), (2, 1, 1), (4, 3, 1), (5, 4, 1), (20, 4, 6)])
def test_a_speaker_of_few_clips_gives_what_there_is(neutral: int, enrolled: int, tests: int) -> None:
    parts = choose_parts([Clip("c", "s", "female", "neutral")] * neutral, range(neutral))
    roles = [part.role for part in parts]
    assert (roles.count("profile"), roles.count("test")) == (enrolled, tests)


def test_a_corpus_has_two_channels_of_every_kind_and_repeats_them() -> None:
    rng = np.random.default_rng(0)
    rooms = [
        Room(rng.standard_normal(400).astype(np.float32), np.eye(1, 800, k, np.float32)[0], 0.3, 2.0) for k in (0, 1)
    ]
    channels, wave = CorpusChannels(rooms), synthesise(1.0, 3)
    for condition in CHANNELS:
        heard = [channels.hear(wave, condition, (0, "c"), variant, np.random.default_rng(1)) for variant in (0, 1, 0)]
        assert all(len(each) == len(wave) and np.isfinite(each).all() for each in heard)
        assert np.array_equal(heard[0], heard[2]) and not np.array_equal(heard[0], heard[1])
    with pytest.raises(ValueError, match="expected a condition of telephone"):
        channels.hear(wave, "tunnel", (0, "c"), 0, rng)
    assert RATE == 16000


def test_profiles_of_each_condition_are_tried_in_all_and_never_by_themselves() -> None:
    heard = through_all(speech(2, 12))
    found = channel_trials(heard)
    assert {each.design for each in found} == set(CONDITIONS)
    for each in found:
        assert set(each.condition) == set(CONDITIONS)
        assert each.target.any() and not each.target.all()
        held = {heard.original[i] for profile in each.trials.profiles for i in profile}
        assert held.isdisjoint(heard.original[int(i)] for i in each.trials.test)
    assert channel_trials(speech(2, 12)) == []


def test_speech_through_channels_takes_no_part_in_the_weights_nor_in_the_other_trials() -> None:
    plain = speech(2, 12)
    heard = through_all(plain)
    for once, again in zip(draw_trials(plain), draw_trials(heard), strict=True):
        clean = again.take(again.condition == "clean")
        assert np.array_equal(once.terms["cosine"], clean.terms["cosine"])
        assert set(again.condition) <= {"clean", "noise"}


@pytest.mark.usefixtures("a_quarter_of_the_strangers")
def test_what_a_telephone_makes_alike_is_taken_off_again() -> None:
    development = through_all(speech(2, 24))
    fitted = fit_speech(development, names=("cosine",))
    assert fitted.conditions is not None
    assert fitted.conditions.both_narrow < -0.3
    through = channel_trials(through_all(speech(8, 24)))
    threshold = fitted.threshold(0.05).llr

    def false_accepts(calibration: Calibration, enrolled: str, tested: str) -> float:
        rows = [each.take(~each.target & (each.condition == tested)) for each in through if each.design == enrolled]
        return float(np.mean(np.concatenate([calibration.llr(each.terms) for each in rows]) >= threshold))

    before = false_accepts(dataclasses.replace(fitted, conditions=None), "telephone", "telephone")
    assert false_accepts(fitted, "telephone", "telephone") < 0.6 * before
    assert false_accepts(fitted, "clean", "clean") < 0.08


def test_speech_of_one_band_has_no_shift_and_few_speakers_none_either() -> None:
    few = through_all(speech(2, 4, corpora=2))
    bare = fit_speech(few, names=("cosine",))
    conditions = fit_conditions(bare, channel_trials(few), few)
    assert (conditions.both_narrow, conditions.profile_narrow, conditions.test_narrow) == (0.0, 0.0, 0.0)
    assert conditions.narrowest_hz <= conditions.narrow_below_hz


@pytest.mark.usefixtures("a_quarter_of_the_strangers")
def test_each_corpus_is_judged_in_every_condition_by_the_others() -> None:
    development = through_all(speech(2, 24, corpora=3))
    everyone, teaching = draw_trials(development), teaching_trials(development)
    found = by_condition(everyone, channel_trials(development), teaching, ("cosine",), development, rate=0.05)
    assert len(found) == 3 * len(CONDITIONS) ** 2
    for figures in found.values():
        assert 0.0 <= figures["far"] <= 0.15 and 0.0 <= figures["frr"] <= 1.0 and figures["speakers"] == 24
