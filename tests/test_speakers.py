"""One speaker or two: a second voice is found where it is, and the odd clip among many, in any order."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.calibration import Term
from emoinv_edge.clips import agreement
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Embedding, Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import EnrolmentError, ModelFormatError
from emoinv_edge.profiles import Exemplar
from emoinv_edge.second_voice import second_voice
from emoinv_edge.speakers import ClipsTest, odd_ones
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    BOB_HZ,
    NOW,
    RATE,
    build_encoder,
    calibrated_encoder,
    calibration,
    in_file,
    profile,
    quality,
    synthesise,
    unit_vectors,
)
from tests.guarding import CLIPS, WINDOWS, guards, guards_in_file

OWNER, STRANGER = unit_vectors(2, 5)


def windows_of(*voices: NDArray[np.float32], spread: float = 0.2, seed: int = 0) -> NDArray[np.float32]:
    """A window of each voice in turn, each a little off."""
    noise = np.random.default_rng(seed).standard_normal((len(voices), len(OWNER)))
    found = np.stack(voices) + spread * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def exemplar(vector: NDArray[np.float32]) -> Exemplar:
    return Exemplar(vector, quality(), NOW)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("speakers")
    return Encoder(build_encoder(folder / "guarded.onnx", metadata=in_file(calibration()) | guards_in_file(guards())))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
def test_one_voice_is_one_voice(count: int) -> None:
    assert second_voice(guards(), windows_of(*[OWNER] * count)) is None


def test_a_second_voice_is_reported_with_where_it_begins() -> None:
    windows = windows_of(*[OWNER] * 6, *[STRANGER] * 6)
    found = second_voice(guards(), windows)
    assert found is not None and found.code == "second_voice"
    assert "from about 3.0 s on" in found.message
    times = [10.0 + 0.5 * k for k in range(12)]
    moved = second_voice(guards(), windows, times)
    assert moved is not None and "from about 13.0 s on" in moved.message


def test_a_second_voice_in_the_middle_is_reported_with_both_its_ends() -> None:
    found = second_voice(guards(), windows_of(*[OWNER] * 6, *[STRANGER] * 4, *[OWNER] * 6))
    assert found is not None
    assert "from about 3.0 to 5.5 s" in found.message


def test_windows_astride_the_border_belong_to_neither_side() -> None:
    both = (OWNER + STRANGER) / np.float32(np.linalg.norm(OWNER + STRANGER))
    found = WINDOWS.find(windows_of(OWNER, OWNER, OWNER, both, STRANGER, STRANGER, STRANGER))
    assert found is not None and found.score > 0.0
    assert (found.first, found.last) in ((4, 6), (0, 2))


def test_too_little_speech_has_no_second_side() -> None:
    assert WINDOWS.find(windows_of(OWNER)) is None
    assert WINDOWS.find(windows_of(OWNER, STRANGER)) is None  # they overlap


def test_half_owner_half_stranger_is_no_decision(encoder: Encoder) -> None:
    verifier = Verifier(encoder, profile("ana", OWNER, model=encoder.fingerprint), prior=0.999)
    windows = windows_of(*[OWNER] * 6, *[STRANGER] * 5)
    mean = windows.mean(axis=0)
    mean /= np.linalg.norm(mean)
    assert verifier.decide(mean, quality()).accepted  # nobody looked within
    decision = verifier.decide(Embedding(mean, 1.0, windows), quality())
    assert decision.verdict is Verdict.NO_DECISION
    assert decision.code == "second_voice"


@settings(max_examples=60, deadline=None)
@given(
    owner=st.integers(0, 8),
    strangers=st.integers(0, 12),
    spread=st.floats(0.05, 0.4),
    seed=st.integers(0, 50),
    prior=st.floats(0.01, 0.99),
)
def test_more_of_a_strangers_voice_never_makes_an_accept_likelier(
    encoder: Encoder, owner: int, strangers: int, spread: float, seed: int, prior: float
) -> None:
    verifier = Verifier(encoder, profile("ana", OWNER, model=encoder.fingerprint), prior=prior)

    def accepted(foreign: int) -> bool:
        windows = windows_of(*[OWNER] * owner, *[STRANGER] * foreign, spread=spread, seed=seed)
        mean = windows.mean(axis=0)
        return verifier.decide(Embedding(mean / np.linalg.norm(mean), 1.0, windows), quality()).accepted

    if owner + strangers:
        assert accepted(strangers) >= accepted(strangers + 1)


def test_the_odd_clip_is_named_wherever_it_stands() -> None:
    for place in range(4):
        voices = [OWNER] * 3
        voices.insert(place, STRANGER)
        clips = [exemplar(vector) for vector in windows_of(*voices)]
        odd, kept = odd_ones(clips, lambda others, clip: CLIPS.llr(others, clip, None), CLIPS.least)
        assert list(odd) == [place]
        assert odd[place] < CLIPS.least <= min(kept)


@settings(max_examples=40, deadline=None)
@given(who=st.lists(st.booleans(), min_size=3, max_size=7), seed=st.integers(0, 99), data=st.data())
def test_the_order_of_clips_does_not_change_the_doubts(who: list[bool], seed: int, data: st.DataObject) -> None:
    vectors = windows_of(*[OWNER if own else STRANGER for own in who], spread=0.6, seed=seed)
    order = data.draw(st.permutations(range(len(who))))

    def doubted(indices: Any) -> set[int]:
        clips = [exemplar(vectors[i]) for i in indices]
        odd, kept = odd_ones(clips, lambda others, clip: CLIPS.llr(others, clip, None), CLIPS.least)
        return {indices[i] for i in odd} if len(kept) > 1 else set(range(len(who)))

    assert doubted(range(len(who))) == doubted(order)


def test_a_clips_test_weighs_how_well_the_others_hold_together() -> None:
    test = ClipsTest(0.0, (Term("cosine", 1.0, -1.0, 1.0), Term("coherence", 10.0, 0.0, 1.0)), 0.5, 0.0)
    near, far = windows_of(OWNER, OWNER, spread=0.1), windows_of(OWNER, STRANGER, spread=0.0)
    clip = exemplar(OWNER)
    tight = test.llr([exemplar(vector) for vector in near], clip, None)
    loose = test.llr([exemplar(vector) for vector in far], clip, None)
    assert tight > loose + 5.0
    assert test.llr([clip], clip, None) == pytest.approx(1.0 + 10.0 * 0.5, abs=1e-5)


def test_a_clips_test_without_the_cosine_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="'cosine' is missing"):
        dataclasses.replace(CLIPS, terms=())


@pytest.mark.parametrize("guarded", [False, True], ids=["by the calibration", "by the guards"])
def test_a_strangers_clip_given_first_is_left_out_as_soon_as_two_agree(
    encoder: Encoder, tmp_path: Path, guarded: bool
) -> None:
    used = encoder if guarded else calibrated_encoder(tmp_path)
    enroller = Enroller(used)
    assert enroller.add(synthesise(3.0, 0, BOB_HZ), RATE).accepted
    assert enroller.add(synthesise(3.0, 1, ANA_HZ), RATE).reason == "other_speaker"
    assert [doubt.number for doubt in enroller.doubts] == [1]
    assert not enroller.ready
    assert enroller.add(synthesise(3.0, 2, ANA_HZ), RATE).accepted
    (doubt,) = enroller.doubts
    assert doubt.number == 0 and doubt.llr < doubt.least
    assert enroller.taken == (1, 2)
    assert enroller.ready
    made = enroller.profile("ana")
    assert len(made.exemplars) == 2
    assert Verifier(used, made).verify(synthesise(3.0, 5, ANA_HZ), RATE).accepted


def test_the_doubts_are_the_same_in_any_order_of_enrolment(encoder: Encoder) -> None:
    waves = [(0, ANA_HZ), (1, ANA_HZ), (2, ANA_HZ), (3, BOB_HZ)]
    for order in itertools.permutations(range(4)):
        enroller = Enroller(encoder)
        for index in order:
            enroller.add(synthesise(3.0, *waves[index]), RATE)
        assert {order[doubt.number] for doubt in enroller.doubts} == {3}
        assert {order[number] for number in enroller.taken} == {0, 1, 2}


def test_as_many_of_another_voice_make_no_profile_unless_somebody_is_sure(encoder: Encoder) -> None:
    for sure in (False, True):
        enroller = Enroller(encoder, sure=sure)
        for seed in range(4):
            enroller.add(synthesise(3.0, seed, ANA_HZ if seed % 2 else BOB_HZ), RATE)
        assert len(enroller.doubts) == 2
        assert enroller.ready is sure
        if sure:
            assert len(enroller.profile("both").exemplars) == 4
        else:
            assert enroller.progress < 1.0
            with pytest.raises(EnrolmentError, match="one person"):
                enroller.profile("both")


def test_adding_to_a_profile_asks_for_what_an_accept_asks_for(encoder: Encoder) -> None:
    begun = Enroller(encoder)
    for seed in range(2):
        begun.add(synthesise(3.0, seed, ANA_HZ), RATE)
    held = begun.profile("ana")
    careful, sure = Enroller(encoder, profile=held), Enroller(encoder, profile=held, sure=True)
    stranger = synthesise(3.0, 9, BOB_HZ)
    assert careful.add(stranger, RATE).reason == "other_speaker"
    assert careful.doubts[0].least == encoder.calibration.threshold(0.01).llr  # type: ignore[union-attr]
    assert careful.add(synthesise(3.0, 9, ANA_HZ), RATE).accepted
    assert len(careful.profile("ana").exemplars) == 3
    assert sure.add(stranger, RATE).accepted
    assert len(sure.doubts) == 1


def test_a_profile_is_as_sure_of_itself_as_its_worst_clip(encoder: Encoder) -> None:
    held = calibration()
    good = [exemplar(vector) for vector in windows_of(OWNER, OWNER, OWNER)]
    alien = [*good, exemplar(STRANGER)]
    assert agreement(held, guards(), good[:1]) is None
    sure, unsure = agreement(held, guards(), good), agreement(held, guards(), alien)
    assert sure is not None and unsure is not None
    assert unsure < CLIPS.least < sure
