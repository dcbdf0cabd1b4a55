"""Enroller: an answer to every utterance, and a profile of one voice only."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import MAX_UTTERANCES, Enroller
from emoinv_edge.errors import AudioError, CalibrationError, EmoinvError, EnrolmentError, ModelMismatchError
from emoinv_edge.profiles import Profile
from emoinv_edge.prompts import languages, read_prompts
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, profile, synthesise, unit_vectors


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("enrolment"))


@pytest.fixture
def begun(encoder: Encoder) -> Enroller:
    """Two utterances of Ana accepted."""
    enroller = Enroller(encoder)
    for seed in range(2):
        assert enroller.add(synthesise(3.0, seed, ANA_HZ), RATE).accepted
    return enroller


def test_progress_rises_to_one_and_the_prompts_ask_for_other_emotions(encoder: Encoder) -> None:
    enroller = Enroller(encoder)
    prompts = read_prompts("en")
    assert (enroller.progress, enroller.ready, enroller.prompt) == (0.0, False, prompts["normal"])
    assert enroller.coverage is None
    answers = [enroller.add(synthesise(3.0, seed, ANA_HZ), RATE) for seed in range(6)]
    assert all(answer.accepted and answer.reason == "accepted" for answer in answers)
    progress = [answer.progress for answer in answers]
    assert progress == sorted(progress)
    assert progress[0] == pytest.approx(0.25)
    assert progress[3] == progress[-1] == 1.0
    assert prompts["normal"] not in [answer.prompt for answer in answers]
    assert all(before.prompt != after.prompt for before, after in itertools.pairwise(answers))
    shares = enroller.coverage
    assert shares is not None and 0.0 < shares.share < 0.9 and enroller.prompt == answers[-1].prompt
    assert answers[-1].seconds == pytest.approx(18.0, abs=0.5)


@pytest.mark.parametrize("language", languages())
def test_an_enrolment_is_led_in_the_language_asked_for(encoder: Encoder, language: str) -> None:
    enroller = Enroller(encoder, language=language)
    assert enroller.prompt == read_prompts(language)["normal"]
    assert enroller.add(synthesise(3.0, 1, ANA_HZ), RATE).prompt in read_prompts(language).values()


def test_a_language_without_prompts_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="language of de, en, es, fr, hi, zh, got 'xx'"):
        Enroller(encoder, language="xx")


def test_a_profile_keeps_every_exemplar_with_its_quality(begun: Enroller, encoder: Encoder) -> None:
    made = begun.profile("ana", consent="asked, said yes")
    assert made.name == "ana"
    assert made.model_fingerprint == encoder.fingerprint
    assert made.consent == "asked, said yes"
    assert len(made.exemplars) == 2
    for exemplar in made.exemplars:
        assert np.linalg.norm(exemplar.embedding) == pytest.approx(1.0, abs=1e-4)
        assert exemplar.quality.net_speech_s == pytest.approx(3.0, abs=0.2)
        assert math.exp(exemplar.quality.log_f0_mean or 0.0) == pytest.approx(ANA_HZ, rel=0.1)
        assert exemplar.audio is None


def test_a_profile_is_refused_before_there_is_enough(encoder: Encoder) -> None:
    enroller = Enroller(encoder)
    with pytest.raises(EnrolmentError, match=r"got 0\.0 s in 0 utterances"):
        enroller.profile("ana")
    assert enroller.add(synthesise(1.5, 0, ANA_HZ), RATE).accepted
    assert not enroller.ready
    with pytest.raises(EnrolmentError, match="at least 2 s"):
        enroller.profile("ana")
    assert enroller.add(synthesise(1.5, 1, ANA_HZ), RATE).accepted
    assert enroller.ready


def noisy(wave: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Speech between two pauses, in noise."""
    gap = np.zeros(RATE, np.float32)
    whole = np.concatenate((gap, wave, gap))
    level = np.sqrt(np.mean(wave**2)) * 10 ** (-snr_db / 20)
    return (whole + level * np.random.default_rng(0).standard_normal(len(whole))).astype(np.float32)


def spoilt() -> dict[str, NDArray[Any]]:
    wave = synthesise(3.0, 50, ANA_HZ)
    poisoned = wave.copy()
    poisoned[999] = math.nan
    return {
        "empty": np.empty(0, np.float32),
        "silent": np.zeros(3 * RATE, np.float32),
        "not_finite": poisoned,
        "too_short": synthesise(0.6, 50, ANA_HZ),
        "clipped": np.clip(wave * 8.0, -1.0, 1.0).astype(np.float32),
        "too_quiet": (wave * np.float32(2e-4)).astype(np.float32),
        "other_speaker": synthesise(3.0, 50, BOB_HZ),
        "second_voice": np.concatenate((synthesise(3.0, 51, ANA_HZ), synthesise(3.0, 51, BOB_HZ))),
        "duplicate": synthesise(3.0, 1, ANA_HZ),
    }


@pytest.mark.parametrize("reason", list(spoilt()))
def test_a_spoilt_utterance_is_refused_for_its_own_reason_and_changes_nothing(begun: Enroller, reason: str) -> None:
    before = (begun.seconds, begun.progress, begun.prompt)
    answer = begun.add(spoilt()[reason], RATE)
    assert not answer.accepted
    assert answer.reason == reason
    assert len(answer.message) > 20
    assert (answer.seconds, answer.progress, answer.prompt) == before
    assert (begun.seconds, begun.progress, begun.prompt) == before
    assert begun.add(synthesise(3.0, 60, ANA_HZ), RATE).accepted


def test_speech_in_loud_noise_is_refused_for_enrolment(begun: Enroller) -> None:
    answer = begun.add(noisy(synthesise(3.0, 8, ANA_HZ), 2.0), RATE)
    assert not answer.accepted
    assert answer.reason in ("too_noisy", "too_short")  # the detector may not hear the speech at all


@pytest.mark.parametrize("change", ["same", "softer", "int16", "48 kHz", "padded"])
def test_a_replay_is_known_in_disguise(encoder: Encoder, change: str) -> None:
    enroller = Enroller(encoder)
    wave = synthesise(3.0, 3, ANA_HZ, 48000)
    first = wave[::3].copy()
    assert enroller.add(first, RATE).accepted
    again: NDArray[Any] = {
        "same": first,
        "softer": (first * np.float32(0.3)).astype(np.float32),
        "int16": np.rint(first * 32767).astype(np.int16),
        "48 kHz": wave,
        "padded": np.concatenate((np.zeros(5000, np.float32), first)),
    }[change]
    assert enroller.add(again, 48000 if change == "48 kHz" else RATE).reason == "duplicate"


def test_a_second_voice_is_found_wherever_it_begins(encoder: Encoder) -> None:
    for at in (1.8, 3.0, 4.2):
        mixed = np.concatenate((synthesise(at, 4, ANA_HZ), synthesise(6.0 - at, 4, BOB_HZ)))
        assert Enroller(encoder).add(mixed, RATE).reason == "second_voice"


def test_the_first_utterance_may_be_anybodys(encoder: Encoder) -> None:
    for hz in (ANA_HZ, BOB_HZ, 150.0):
        assert Enroller(encoder).add(synthesise(3.0, 5, hz), RATE).accepted


def test_a_profile_can_be_added_to(begun: Enroller, encoder: Encoder) -> None:
    old = begun.profile("ana", consent="yes")
    enroller = Enroller(encoder, profile=old)
    assert enroller.add(synthesise(3.0, 1, ANA_HZ), RATE).reason == "duplicate"
    assert enroller.add(synthesise(3.0, 20, BOB_HZ), RATE).reason == "other_speaker"
    assert enroller.add(synthesise(3.0, 20, ANA_HZ), RATE).accepted
    new = enroller.profile("ana")
    assert new.exemplars[:2] == old.exemplars
    assert len(new.exemplars) == 3
    assert (new.created, new.consent) == (old.created, "yes")


def test_a_profile_of_another_model_cannot_be_added_to(begun: Enroller, encoder: Encoder) -> None:
    foreign = dataclasses.replace(begun.profile("ana"), model_fingerprint="f" * 64)
    with pytest.raises(ModelMismatchError):
        Enroller(encoder, profile=foreign)


def test_audio_is_kept_only_when_asked_for(encoder: Encoder) -> None:
    enroller = Enroller(encoder, keep_audio=True)
    wave = synthesise(3.0, 6, ANA_HZ)
    enroller.add(wave, RATE)
    audio = enroller.profile("ana").exemplars[0].audio
    assert audio is not None
    kept = np.frombuffer(audio, "<i2").astype(np.float32) / 32768.0
    again = encoder.embed(kept, RATE)
    exemplar = enroller.profile("ana").exemplars[0]
    assert float(again @ exemplar.embedding) > 0.999
    assert exemplar.quality.log_embedding_norm == pytest.approx(math.log(again.norm), abs=1e-2)


def test_a_full_profile_takes_no_more(encoder: Encoder) -> None:
    full = profile("ana", *unit_vectors(MAX_UTTERANCES, 1), model=encoder.fingerprint)
    assert Enroller(encoder, profile=full).add(synthesise(2.0, 7, ANA_HZ), RATE).reason == "full"


def test_a_model_without_calibration_cannot_enrol(tiny_encoder: Encoder) -> None:
    with pytest.raises(CalibrationError, match="no calibration"):
        Enroller(tiny_encoder)


def test_an_utterance_that_the_model_cannot_embed_is_refused(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Encoder, features: NDArray[np.float32]) -> None:
        raise EmoinvError("norm 0")

    enroller = Enroller(encoder)
    monkeypatch.setattr(Encoder, "embed_features", fail)
    assert enroller.add(synthesise(2.0, 0, ANA_HZ), RATE).reason == "no_embedding"


def test_wrong_arrays_are_errors_not_answers(encoder: Encoder) -> None:
    with pytest.raises(AudioError):
        Enroller(encoder).add(np.ones(RATE, np.int8), RATE)
    with pytest.raises(AudioError):
        Enroller(encoder).add(np.ones(RATE, np.float32), 100)


@settings(max_examples=10, deadline=None)
@given(seconds=st.floats(0.0, 4.0), seed=st.integers(100, 200), gain=st.floats(1e-4, 3.0))
def test_whatever_is_added_the_answer_is_consistent(encoder: Encoder, seconds: float, seed: int, gain: float) -> None:
    enroller = Enroller(encoder)
    wave = np.clip(synthesise(seconds, seed, ANA_HZ) * gain, -1.0, 1.0).astype(np.float32)
    answer = enroller.add(wave, RATE)
    assert answer.accepted == (answer.reason == "accepted") == (enroller.seconds > 0)
    assert 0.0 <= answer.progress <= 1.0
    assert answer.prompt == enroller.prompt


def test_profiles_of_two_enrollers_do_not_interact(encoder: Encoder) -> None:
    first, second = Enroller(encoder), Enroller(encoder)
    first.add(synthesise(3.0, 1, ANA_HZ), RATE)
    assert second.seconds == 0.0
    assert second.add(synthesise(3.0, 1, ANA_HZ), RATE).accepted
    held: Profile = first.profile("ana")
    first.add(synthesise(3.0, 2, ANA_HZ), RATE)
    assert len(held.exemplars) == 1
