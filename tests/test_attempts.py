"""Session: two or three utterances as one decision that no order, guard or second voice can open."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.attempts import MISSING_NATS, Session, one_voice, pooled
from emoinv_edge.calibration import Calibration, SessionRise
from emoinv_edge.cli import main
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import CalibrationError, ModelFormatError
from emoinv_edge.heard import HeardBefore
from emoinv_edge.profiles import Profile
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.stream import VerificationStream
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    BOB_HZ,
    RATE,
    build_encoder,
    calibrated_encoder,
    calibration,
    enrolled,
    in_file,
    profile,
    quality,
    synthesise,
    unit_vectors,
)

RISES = (SessionRise(2, (0.5, 0.01), (0.2, 0.4)), SessionRise(3, (0.5, 0.01), (0.3, 0.6)))
MEASURED = calibration(session_rises=RISES)
GOOD = quality()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("attempts"), MEASURED)


@pytest.fixture(scope="module")
def ana(encoder: Encoder) -> Profile:
    return enrolled(encoder, "ana", ANA_HZ)


def near(vector: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """A vector of unit norm at that cosine from another."""
    away = unit_vectors(1, seed, len(vector))[0].astype(np.float64)
    away -= (away @ vector) * vector
    away /= np.linalg.norm(away)
    return (cosine * vector + math.sqrt(1.0 - cosine**2) * away).astype(np.float32)


def verifier_of(encoder: Encoder, vector: np.ndarray, held: Calibration = MEASURED) -> Verifier:
    return Verifier(encoder, profile("ana", vector, model=encoder.fingerprint), calibration=held)


AXIS = unit_vectors(1, 3)[0]
# Whatever utterances are drawn, they count as one person's.
LENIENT = calibration(session_rises=RISES, bias=-2.0, far_tables=calibration().far_tables)


# --- the decision -------------------------------------------------------------------------------------


def test_two_utterances_that_fail_alone_are_accepted_together(encoder: Encoder) -> None:
    """Both lie off the profile, in different directions: their mean is nearer."""
    verifier = verifier_of(encoder, AXIS)
    session = verifier.session()
    first, second = near(AXIS, 0.69, 11), near(AXIS, 0.69, 12)
    alone = session.take(first, GOOD)
    assert alone.verdict is Verdict.REJECT and not session.over
    together = session.take(second, GOOD)
    assert together.verdict is Verdict.ACCEPT and session.over and session.num_heard == 2
    assert all(verifier.decide(each, GOOD).verdict is Verdict.REJECT for each in (first, second))
    assert "of 2 utterances together" in together.reason
    assert together.threshold == verifier.threshold.llr + 0.4
    assert session.decision is together


def test_one_clear_utterance_is_accepted_at_once_and_must_be_clearer_than_without_a_session(encoder: Encoder) -> None:
    verifier = verifier_of(encoder, AXIS)
    needed = (7.0 + verifier.session_threshold(2).llr + MISSING_NATS) / 10.0
    assert verifier.session().take(near(AXIS, needed + 0.01, 5), GOOD).accepted
    short = near(AXIS, needed - 0.01, 5)
    assert not verifier.session().take(short, GOOD).accepted
    assert verifier.decide(short, GOOD).accepted


def test_the_owner_is_accepted_and_another_voice_rejected_from_recordings(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    own, other = verifier.session(), verifier.session()
    for seed in (5, 6):
        heard = own.add(synthesise(2.0, seed, ANA_HZ), RATE)
        strange = other.add(synthesise(2.0, seed, BOB_HZ), RATE)
        assert heard.accepted and strange.verdict is Verdict.REJECT
    assert own.over and other.over


@settings(max_examples=60, deadline=None)
@given(
    cosines=st.lists(st.floats(-0.2, 0.99), min_size=1, max_size=3),
    seconds=st.lists(st.floats(0.8, 9.0), min_size=3, max_size=3),
    attempts=st.sampled_from([2, 3]),
    seed=st.integers(10, 1000),
)
def test_a_session_accepts_nothing_that_its_utterances_and_their_pools_would_not(
    encoder: Encoder, cosines: list[float], seconds: list[float], attempts: int, seed: int
) -> None:
    verifier = verifier_of(encoder, AXIS, LENIENT)
    heard = [
        (near(AXIS, cosine, seed + k), quality(net_speech_s=long))
        for k, (cosine, long) in enumerate(zip(cosines[:attempts], seconds, strict=False))
    ]
    session = verifier.session(attempts)
    last = [session.take(vector, each, at_s=0.0) for vector, each in heard][-1]
    if last.accepted:
        parts = [part for count in range(1, len(heard) + 1) for part in itertools.combinations(heard, count)]
        assert any(verifier.decide(*pooled(part)).accepted for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    cosines=st.lists(st.floats(-0.2, 0.99), min_size=2, max_size=3),
    order=st.permutations(range(3)),
    seed=st.integers(10, 1000),
    strict=st.booleans(),
)
def test_the_order_of_the_utterances_does_not_matter(
    encoder: Encoder, cosines: list[float], order: list[int], seed: int, strict: bool
) -> None:
    verifier = verifier_of(encoder, AXIS, MEASURED if strict else LENIENT)
    heard = [(near(AXIS, cosine, seed + k), quality(net_speech_s=1.0 + k)) for k, cosine in enumerate(cosines)]
    found = []
    for places in (range(len(heard)), [place for place in order if place < len(heard)]):
        session = verifier.session(3)
        for place in places:
            last = session.take(*heard[place], at_s=0.0)
        found.append((last.verdict, last.score, last.threshold, last.code))
    assert found[0] == found[1]


@settings(max_examples=40, deadline=None)
@given(cosines=st.lists(st.floats(-0.2, 0.99), min_size=3, max_size=3), seed=st.integers(10, 1000))
def test_one_more_utterance_never_lowers_the_score(encoder: Encoder, cosines: list[float], seed: int) -> None:
    session = verifier_of(encoder, AXIS, LENIENT).session(3)
    scores = [session.take(near(AXIS, cosine, seed + k), GOOD, at_s=0.0).score for k, cosine in enumerate(cosines)]
    known = [score for score in scores if score is not None]
    assert known == sorted(known)


# --- what does not count, and what ends it ------------------------------------------------------------


def test_two_voices_end_the_session_without_a_decision_even_where_one_is_the_owner(
    encoder: Encoder, ana: Profile
) -> None:
    own, strange = synthesise(2.0, 5, ANA_HZ), synthesise(2.0, 6, BOB_HZ)
    for first, second in ((own, strange), (strange, own)):
        session = Verifier(encoder, ana).session(3)
        session.add(first, RATE)
        mixed = session.add(second, RATE)
        assert mixed.verdict is Verdict.NO_DECISION and mixed.code == "second_voice" and session.over
        again = session.add(own, RATE)
        assert again.verdict is Verdict.NO_DECISION and again.code == "second_voice"
        session.reset()
        assert session.add(own, RATE).accepted


def test_recordings_that_cannot_be_judged_are_no_attempts(encoder: Encoder, ana: Profile) -> None:
    session = Verifier(encoder, ana).session()
    for audio, code in (
        (np.empty(0, np.float32), "empty"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.full(RATE, math.nan, np.float32), "not_finite"),
        (synthesise(0.3, 1, ANA_HZ), "too_short"),
    ):
        refused = session.add(audio, RATE)
        assert refused.verdict is Verdict.NO_DECISION and refused.code == code
    assert session.num_heard == 0 and session.decision is None
    assert session.add(synthesise(2.0, 5, ANA_HZ), RATE).accepted
    assert session.add(np.empty(0, np.float32), RATE).verdict is Verdict.NO_DECISION
    assert session.decision is not None and session.decision.accepted


@pytest.mark.parametrize("broken", ["nan", "zero", "scaled", "short"])
def test_a_broken_embedding_is_no_attempt(encoder: Encoder, broken: str) -> None:
    vector = AXIS.copy()
    if broken == "nan":
        vector[3] = math.nan
    vector = {"nan": vector, "zero": 0.0 * AXIS, "scaled": 2.0 * AXIS, "short": AXIS[:5]}[broken]
    session = verifier_of(encoder, AXIS).session()
    refused = session.take(vector, GOOD)
    assert refused.verdict is Verdict.NO_DECISION and refused.code == "no_score" and session.num_heard == 0


def test_utterances_that_cancel_each_other_out_have_no_pool() -> None:
    with pytest.raises(ValueError, match="cancel"):
        pooled([(AXIS, GOOD), (-AXIS, GOOD)])
    with pytest.raises(ValueError, match="at least one"):
        pooled([])


def test_a_pool_weighs_by_seconds_and_keeps_unit_norm() -> None:
    first, second = unit_vectors(2, 8)
    vector, merged = pooled([(first, quality(net_speech_s=3.0)), (second, quality(net_speech_s=1.0))])
    expected = 3.0 * first + second
    assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6) and merged.net_speech_s == 4.0
    known = quality(log_embedding_norm=1.0)
    assert pooled([(first, known), (second, quality(log_embedding_norm=2.0))])[1].log_embedding_norm == 1.5
    assert pooled([(first, known), (second, GOOD)])[1].log_embedding_norm is None


def test_after_its_attempts_or_its_time_a_session_takes_nothing(encoder: Encoder) -> None:
    session = verifier_of(encoder, AXIS).session(within_s=30.0)
    session.take(near(AXIS, 0.6, 1), GOOD, at_s=100.0)
    late = session.take(AXIS, GOOD, at_s=130.1)
    assert late.verdict is Verdict.NO_DECISION and late.code == "session_over" and "30 s" in late.reason
    assert session.take(near(AXIS, 0.6, 1), GOOD, at_s=130.0).verdict is Verdict.REJECT
    full = session.take(AXIS, GOOD, at_s=130.0)
    assert full.verdict is Verdict.NO_DECISION and full.code == "session_over" and "2 attempts" in full.reason


def test_a_session_that_renews_itself_begins_anew_where_another_would_refuse(encoder: Encoder) -> None:
    session = verifier_of(encoder, AXIS).session(renew=True)
    far = near(AXIS, 0.5, 1)
    assert [session.take(far, GOOD, at_s=float(at)).verdict for at in range(5)] == 5 * [Verdict.REJECT]
    assert session.num_heard == 1
    assert session.take(AXIS, GOOD, at_s=1000.0).accepted and session.num_heard == 1
    assert not session.take(far, GOOD, at_s=1001.0).accepted and session.num_heard == 1


def test_a_recording_that_was_heard_before_is_kept_out_of_the_pool(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana, heard_before=HeardBefore())
    wave = synthesise(3.0, 5, ANA_HZ)
    session = verifier.session()
    assert session.add(wave, RATE).accepted
    again = session.add(wave, RATE)
    assert again.verdict is Verdict.NO_DECISION and again.code == "heard_before" and session.num_heard == 1


def test_a_countermeasure_is_asked_about_every_utterance_that_others_could_be_accepted_with(
    encoder: Encoder, ana: Profile
) -> None:
    asked = []

    def object_to_all(waveform: np.ndarray, sample_rate: int) -> str:
        asked.append(len(waveform))
        return "synthetic"

    session = Verifier(encoder, ana, countermeasure=object_to_all).session()
    for seconds in (1.0, 2.0):
        refused = session.add(synthesise(seconds, 6, BOB_HZ), RATE)
        assert refused.verdict is Verdict.NO_DECISION and refused.code == "countermeasure"
    assert session.num_heard == 0 and asked == [RATE, 2 * RATE]


# --- thresholds ---------------------------------------------------------------------------------------


def test_the_rise_follows_the_rate_and_never_leaves_what_was_measured(encoder: Encoder) -> None:
    one = MEASURED.threshold(0.01)
    assert MEASURED.session_threshold(one, 2).llr == one.llr + 0.4
    assert MEASURED.session_threshold(MEASURED.threshold(0.5), 3).llr == MEASURED.threshold(0.5).llr + 0.3
    middle = MEASURED.session_threshold(MEASURED.threshold(0.1), 2).llr - MEASURED.threshold(0.1).llr
    assert 0.2 < middle < 0.4


def test_without_measured_sessions_there_is_none_but_by_extrapolation(encoder: Encoder, ana: Profile) -> None:
    bare = calibration()
    with pytest.raises(CalibrationError, match=r"sessions of 2 attempts.*export calibrate"):
        Verifier(encoder, ana, calibration=bare).session()
    session = Verifier(encoder, ana, calibration=bare, extrapolate=True).session()
    decision = session.add(synthesise(2.0, 5, ANA_HZ), RATE)
    assert decision.extrapolated and decision.threshold == pytest.approx(math.log(3.0))


@pytest.mark.parametrize("attempts", [0, 1, 4, True, 2.0])
def test_only_two_or_three_attempts_make_a_session(encoder: Encoder, ana: Profile, attempts: int) -> None:
    with pytest.raises(ValueError, match="2 to 3 attempts"):
        Verifier(encoder, ana).session(attempts)


@pytest.mark.parametrize("within_s", [0.0, -1.0, math.nan, math.inf])
def test_the_time_limit_is_a_positive_number(encoder: Encoder, ana: Profile, within_s: float) -> None:
    with pytest.raises(ValueError, match="within_s"):
        Verifier(encoder, ana).session(within_s=within_s)


def test_a_prior_gives_no_session(encoder: Encoder, ana: Profile) -> None:
    with pytest.raises(ValueError, match="without a prior"):
        Verifier(encoder, ana, prior=0.5).session()


def test_rises_are_read_back_and_an_older_file_without_them_is_read(encoder: Encoder) -> None:
    assert Calibration.from_json(MEASURED.to_json()) == MEASURED
    older = calibration().to_json().replace('"session_rises": [], ', "")
    assert "session_rises" not in older
    assert Calibration.from_json(older) == calibration()


@pytest.mark.parametrize(
    ("rises", "word"),
    [
        ((SessionRise(4, (0.5,), (0.1,)),), "attempts"),
        ((SessionRise(3, (0.5,), (0.1,)), SessionRise(2, (0.5,), (0.1,))), "attempts"),
        ((SessionRise(2, (0.5, 0.1), (0.1,)),), "as many"),
        ((SessionRise(2, (), ()),), "as many"),
        ((SessionRise(2, (0.1, 0.5), (0.1, 0.1)),), "should fall"),
        ((SessionRise(2, (0.5,), (-0.1,)),), "below"),
        ((SessionRise(2, (0.5,), (math.nan,)),), "finite"),
    ],
)
def test_rises_that_could_open_a_door_are_refused(rises: tuple[SessionRise, ...], word: str) -> None:
    with pytest.raises(ModelFormatError, match=word):
        calibration(session_rises=rises)


def test_one_voice_is_symmetric(encoder: Encoder) -> None:
    first: tuple[np.ndarray, SpeechQuality] = (AXIS, GOOD)
    second = (near(AXIS, 0.1, 2), dataclasses.replace(GOOD, net_speech_s=1.0))
    assert one_voice(MEASURED, first, first) and not one_voice(MEASURED, first, second)
    assert one_voice(MEASURED, second, first) == one_voice(MEASURED, first, second)


# --- in a stream --------------------------------------------------------------------------------------


def spoken(*takes: tuple[int, float]) -> np.ndarray:
    """Utterances of voices with pauses around them."""
    quiet = np.zeros(RATE, np.float32)
    return np.concatenate([quiet, *(part for seed, hz in takes for part in (synthesise(2.0, seed, hz), quiet))])


def test_a_stream_with_a_session_decides_on_utterances_together_and_without_it_alone(
    encoder: Encoder, ana: Profile
) -> None:
    verifier = Verifier(encoder, ana)
    stream = VerificationStream(verifier, session=Session(verifier, renew=True))
    audio = spoken((5, BOB_HZ), (6, BOB_HZ), (7, ANA_HZ))
    found = [decision for decision in stream.process(audio) if decision.final]
    assert [decision.verdict for decision in found] == [Verdict.REJECT, Verdict.REJECT, Verdict.ACCEPT]
    assert all(decision.threshold == verifier.session_threshold(2).llr for decision in found)
    assert found[1].start == found[0].start < found[2].start
    alone = [decision for decision in verifier.stream().process(audio) if decision.final]
    assert all(decision.threshold == verifier.threshold.llr for decision in alone)


@pytest.mark.parametrize("chunk", [160, 511, 7777])
def test_chunking_is_invisible_to_a_session(encoder: Encoder, ana: Profile, chunk: int) -> None:
    verifier = Verifier(encoder, ana)
    audio = spoken((5, ANA_HZ), (6, BOB_HZ), (7, ANA_HZ))
    whole = VerificationStream(verifier, session=verifier.session(renew=True))
    parts = VerificationStream(verifier, session=verifier.session(renew=True))
    expected = [*whole.process(audio), *whole.flush()]
    found = [each for at in range(0, len(audio), chunk) for each in parts.process(audio[at : at + chunk])]
    assert [*found, *parts.flush()] == expected


def test_a_stream_s_session_leaves_out_what_its_guard_refuses(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana, countermeasure=lambda waveform, rate: "synthetic")
    session = verifier.session(renew=True)
    stream = VerificationStream(verifier, session=session)
    final = [decision for decision in stream.process(spoken((5, ANA_HZ), (6, ANA_HZ))) if decision.final]
    assert [decision.code for decision in final] == ["countermeasure", "countermeasure"]
    assert session.num_heard == 0


# --- on the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The command with a calibrated tiny model and a store in which ana is enrolled."""
    folder = tmp_path_factory.mktemp("house")
    model = build_encoder(folder / "tiny.onnx", metadata=in_file(MEASURED))

    def run(*words: str) -> int:
        files = [str(folder / word) if word.endswith(".wav") else word for word in words]
        return main([*files, "--model", str(model), "--store", str(folder / "profiles.db"), "--plaintext"])

    for name, seed, hz in (("ana1", 1001, ANA_HZ), ("ana2", 1002, ANA_HZ), ("ana3", 5, ANA_HZ), ("ana4", 6, ANA_HZ),
                           ("bob1", 5, BOB_HZ), ("bob2", 6, BOB_HZ)):  # fmt: skip
        soundfile.write(folder / f"{name}.wav", synthesise(3.0, seed, hz), RATE)
    soundfile.write(folder / "word.wav", synthesise(0.3, 5, ANA_HZ), RATE)
    soundfile.write(folder / "both.wav", spoken((5, BOB_HZ), (7, BOB_HZ)), RATE)
    assert run("enroll", "ana", "ana1.wav", "ana2.wav") == 0
    return run


def test_two_recordings_are_one_decision_with_its_exit_status(
    house: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert house("verify", "ana", "ana3.wav", "ana4.wav", "--session") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("ACCEPT  ana  LLR ") and "of 2 attempts" in first and "ana4.wav" in second
    assert house("verify", "ana", "bob1.wav", "bob2.wav", "--session") == 1
    assert house("verify", "ana", "ana3.wav", "bob2.wav", "--session") == 2
    assert "do not sound like one person" in capsys.readouterr().out
    assert house("profiles", "show", "ana", "--json") == 0
    (counts,) = json.loads(capsys.readouterr().out)["verified"].values()
    assert counts == {"accept": 1, "reject": 1, "no_decision": 1}


def test_what_cannot_be_judged_is_reported_and_does_not_count(
    house: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert house("verify", "ana", "ana4.wav", "word.wav", "--session", "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["verdict"] for each in answers] == ["accept", "no_decision"]
    assert house("verify", "ana", "word.wav", "--session") == 2
    assert house("verify", "ana", "ana3.wav", "none.wav", "--session") == 3


def test_four_recordings_or_adaptation_make_no_session(
    house: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (4 * ["ana3.wav"], ["ana3.wav", "--adapt"], ["ana3.wav", "--channel", "each"]):
        assert house("verify", "ana", *words, "--session") == 3
        assert "at most 3 recordings of one person" in capsys.readouterr().err


def test_listening_with_sessions_shows_their_threshold(
    house: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert house("listen", "ana", "--file", "both.wav", "--session", "--json") == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    final = [event for event in events if event["event"] == "decision" and event["final"]]
    assert events[0]["threshold"] == final[0]["threshold"] == pytest.approx(0.4)
    assert final[0]["start"] == final[1]["start"]
