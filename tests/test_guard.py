"""What stands beside the score: recordings heard before and a countermeasure can only take an accept away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.cli import main
from emoinv_edge.decision import Decision, Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import StoreError, UnknownSpeakerError
from emoinv_edge.heard import HeardBefore
from emoinv_edge.profiles import Profile
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, enrolled, synthesise


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def ana(encoder: Encoder) -> Profile:
    return enrolled(encoder, "ana", ANA_HZ)


@pytest.fixture
def store(tmp_path: Path, ana: Profile) -> ProfileStore:
    found = ProfileStore(tmp_path / "profiles.db")
    found.put(ana)
    return found


def voice(seed: int, f0_hz: float = ANA_HZ, seconds: float = 3.0) -> NDArray[np.float32]:
    return synthesise(seconds, seed, f0_hz)


def say(*utterances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Utterances with a second and a half of near silence around each."""
    noise = np.random.default_rng(0).standard_normal(round(1.5 * RATE)).astype(np.float32) * np.float32(1e-3)
    return np.concatenate([noise, *(part for each in utterances for part in (each, noise))])


def test_an_attempt_that_is_played_back_is_no_decision_with_the_time_of_the_first(
    encoder: Encoder, ana: Profile
) -> None:
    verifier = Verifier(encoder, ana, heard_before=HeardBefore())
    first = verifier.verify(voice(5), RATE)
    again = verifier.verify(0.5 * voice(5), RATE)
    assert first.verdict is Verdict.ACCEPT and first.code == ""
    assert again.verdict is Verdict.NO_DECISION and again.code == "heard_before"
    assert again.score is None and again.cosine is None
    assert "UTC" in again.reason and "say it anew" in again.reason
    assert verifier.verify(voice(6), RATE).accepted


def test_refused_and_rejected_attempts_count_as_heard_too(encoder: Encoder, ana: Profile) -> None:
    heard = HeardBefore()
    verifier = Verifier(encoder, ana, heard_before=heard)
    clipped = np.clip(8.0 * voice(7), -1.0, 1.0).astype(np.float32)
    assert verifier.verify(clipped, RATE).code == "clipped"
    assert verifier.verify(voice(7, BOB_HZ), RATE).verdict is Verdict.REJECT
    assert len(heard) == 2
    assert verifier.verify(voice(7), RATE).code == "heard_before"
    assert verifier.verify(voice(7, BOB_HZ), RATE).code == "heard_before"


@pytest.mark.parametrize("broken", [np.zeros(RATE, np.float32), np.empty(0, np.float32), np.full(RATE, np.nan)])
def test_audio_that_is_no_sound_leaves_nothing(encoder: Encoder, ana: Profile, broken: NDArray[Any]) -> None:
    heard = HeardBefore()
    decision = Verifier(encoder, ana, heard_before=heard).verify(broken, RATE)
    assert decision.code in ("silent", "empty", "not_finite")
    assert len(heard) == 0


def test_a_store_that_cannot_keep_an_attempt_does_not_cost_the_decision(
    encoder: Encoder, ana: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fingerprint: bytes) -> None:
        raise StoreError("the disk is full")

    verifier = Verifier(encoder, ana, heard_before=HeardBefore(on_add=full))
    assert verifier.verify(voice(8), RATE).accepted
    assert "the disk is full" in caplog.text


def test_a_stream_refuses_what_it_heard_in_the_same_words_only(encoder: Encoder, ana: Profile) -> None:
    stream = Verifier(encoder, ana, heard_before=HeardBefore()).stream(RATE)
    audio = say(voice(9), voice(10), voice(9))
    decisions = [decision for at in range(0, len(audio), 317) for decision in stream.process(audio[at : at + 317])]
    decisions += stream.flush()
    assert [decision.verdict for decision in decisions if decision.final] == [
        Verdict.ACCEPT,
        Verdict.ACCEPT,
        Verdict.NO_DECISION,
    ]
    assert decisions[-1].code == "heard_before"
    third = [decision for decision in decisions if decision.start >= decisions[-1].start]
    assert not any(decision.accepted for decision in third)


def test_what_was_enrolled_is_heard_before_where_the_enroller_was_asked(encoder: Encoder) -> None:
    heard = HeardBefore()
    enroller = Enroller(encoder, heard_before=heard)
    assert enroller.add(voice(11), RATE).accepted
    assert not enroller.add(voice(12, BOB_HZ), RATE).accepted
    assert len(heard) == 1
    assert heard.check(voice(11), RATE) is not None


def test_the_store_keeps_what_was_heard_sealed_and_erases_it_with_the_profile(
    encoder: Encoder, store: ProfileStore
) -> None:
    Verifier(encoder, store.get("ana"), heard_before=store.heard("ana")).verify(voice(13), RATE)
    again = Verifier(encoder, store.get("ana"), heard_before=store.heard("ana")).verify(voice(13), RATE)
    assert again.code == "heard_before"
    fingerprint = HeardBefore()
    fingerprint.add(voice(13), RATE)
    assert fingerprint.to_bytes()[100:140] not in store.path.read_bytes()
    store.rotate()
    assert len(store.heard("ana")) == 2
    size = store.path.stat().st_size
    store.forget_heard("ana")
    assert len(store.heard("ana")) == 0
    assert store.path.stat().st_size < size
    store.remove("ana")
    with pytest.raises(UnknownSpeakerError):
        store.heard("ana")


def test_fingerprints_in_plaintext_are_erased_too(tmp_path: Path, ana: Profile) -> None:
    store = ProfileStore(tmp_path / "plain.db", PLAINTEXT)
    store.put(ana)
    heard = store.heard("ana")
    heard.add(voice(14), RATE)
    part = heard.to_bytes()[100:140]
    assert part in store.path.read_bytes()
    store.remove("ana")
    assert part not in store.path.read_bytes()


def test_the_store_keeps_so_many_and_drops_the_oldest(store: ProfileStore) -> None:
    heard = store.heard("ana", keep=3)
    for seed in range(5):
        heard.add(voice(seed, seconds=1.0), RATE)
    kept = store.heard("ana", keep=3)
    assert len(kept) == 3
    assert [kept.check(voice(seed, seconds=1.0), RATE) is not None for seed in range(5)] == [False] * 2 + [True] * 3


def test_what_one_profile_heard_is_not_another_ones(store: ProfileStore, encoder: Encoder) -> None:
    store.put(enrolled(encoder, "bob", BOB_HZ))
    store.heard("ana").add(voice(15), RATE)
    assert len(store.heard("bob")) == 0


def test_a_profile_that_is_replaced_forgets_nothing_it_heard(store: ProfileStore, ana: Profile) -> None:
    store.heard("ana").add(voice(16), RATE)
    store.put(ana)
    assert len(store.heard("ana")) == 1


@pytest.mark.parametrize("answer", [True, "no live voice", 1, {"score": 0.9}])
def test_an_objection_turns_an_accept_into_no_decision(encoder: Encoder, ana: Profile, answer: object) -> None:
    decision = Verifier(encoder, ana, countermeasure=lambda waveform, rate: answer).verify(voice(17), RATE)
    assert decision.verdict is Verdict.NO_DECISION
    assert decision.code == "countermeasure"
    assert decision.score is None
    assert str(answer) in decision.reason or not isinstance(answer, str)


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), KeyError("y"), RuntimeError()])
def test_a_countermeasure_that_fails_accepts_nobody(encoder: Encoder, ana: Profile, error: Exception) -> None:
    def failing(waveform: NDArray[Any], rate: int) -> object:
        raise error

    assert Verifier(encoder, ana, countermeasure=failing).verify(voice(17), RATE).code == "countermeasure"


def test_a_countermeasure_is_asked_about_accepts_alone_with_the_audio_as_it_came(
    encoder: Encoder, ana: Profile
) -> None:
    asked: list[tuple[NDArray[Any], int]] = []
    verifier = Verifier(encoder, ana, countermeasure=lambda waveform, rate: asked.append((waveform, rate)))
    waveform = voice(17)
    assert verifier.verify(waveform, RATE).accepted
    assert asked[0][0] is waveform and asked[0][1] == RATE
    verifier.verify(voice(17, BOB_HZ), RATE)
    verifier.verify(np.zeros(RATE, np.float32), RATE)
    assert len(asked) == 1


@given(
    st.sampled_from(list(Verdict)),
    st.one_of(st.none(), st.booleans(), st.text(), st.integers(), st.just(ValueError("fails"))),
    st.booleans(),
)
@settings(max_examples=60)
def test_no_guard_ever_makes_an_accept(
    encoder_and_profile: tuple[Encoder, Profile], verdict: Verdict, answer: object, known: bool
) -> None:
    def countermeasure(waveform: NDArray[Any], rate: int) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    heard = HeardBefore()
    if known:
        heard.add(voice(18, seconds=1.0), RATE)
    verifier = Verifier(*encoder_and_profile, heard_before=heard, countermeasure=countermeasure)
    score = None if verdict is Verdict.NO_DECISION else 1.0
    before = Decision(verdict, score, "r", 0.0, 0.01, "ana", None, None, 0, 1, True)
    after = verifier.guard(before, voice(18, seconds=1.0), RATE)
    assert after.verdict in (verdict, Verdict.NO_DECISION)
    assert after.accepted == (verdict is Verdict.ACCEPT and not known and not answer)


@pytest.fixture(scope="module")
def encoder_and_profile(encoder: Encoder, ana: Profile) -> tuple[Encoder, Profile]:
    return encoder, ana


def wav(folder: Path, name: str, waveform: NDArray[np.float32]) -> str:
    soundfile.write(folder / name, waveform, RATE)
    return str(folder / name)


def test_the_command_line_refuses_replays_of_enrolment_and_attempts(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def emoinv(*words: str) -> int:
        return main([*words, "--model", str(encoder.path), "--store", str(tmp_path / "profiles.db")])

    enrolled_clip, attempt = wav(tmp_path, "a.wav", voice(20)), wav(tmp_path, "b.wav", voice(21))
    assert emoinv("enroll", "ana", enrolled_clip, wav(tmp_path, "c.wav", voice(22)), "--refuse-replays") == 0
    assert emoinv("verify", "ana", enrolled_clip) == 0
    assert emoinv("verify", "ana", enrolled_clip, "--refuse-replays") == 2
    assert emoinv("verify", "ana", attempt, "--refuse-replays", "--json") == 0
    capsys.readouterr()
    assert emoinv("verify", "ana", attempt, "--refuse-replays", "--json") == 2
    assert '"code": "heard_before"' in capsys.readouterr().out
    assert emoinv("listen", "ana", "--file", attempt, "--refuse-replays", "--until-accept") == 2
    assert emoinv("enroll", "bob", wav(tmp_path, "d.wav", voice(23, BOB_HZ))) == 0
    assert emoinv("listen", "ana", "bob", "--file", attempt, "--refuse-replays") == 3


def test_an_examination_unpacks_and_is_true_for_an_accept_only(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    for f0_hz in (ANA_HZ, BOB_HZ):
        examined = verifier.examine(voice(30, f0_hz), RATE)
        decision, embedding = examined
        assert decision is examined.decision and embedding is examined.embedding
        assert bool(examined) == decision.accepted
        assert not isinstance(examined, tuple)
