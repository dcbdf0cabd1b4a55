"""`emoinv enroll`, from files and at the microphone: what is taken, what is not, and what is never overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.microphone import Gap
from tests.builders import synthesise
from tests.shell import ANA_HZ, BOB_HZ, Shell


def test_enrolling_reports_what_was_taken_and_where_it_is(emoinv: Shell, recording: Callable[..., Path]) -> None:
    files = [recording(f"ana-{seed}", seconds=4.0, seed=seed) for seed in (1, 2, 3)]
    assert emoinv("enroll", "ana", *files, "--consent", "asked in writing", "--expires", "30", "--json") == 0
    answer = emoinv.answer()
    assert answer["exemplars"] == 3
    assert answer["seconds"] > 9.0
    assert answer["store"] == str(emoinv.store)
    assert [each["accepted"] for each in answer["utterances"]] == [True, True, True]
    assert answer["expires"] is not None
    assert emoinv.store.is_file()


def test_one_bad_recording_does_not_spoil_the_others(emoinv: Shell, recording: Callable[..., Path]) -> None:
    bad = emoinv.folder / "bad.wav"
    bad.write_text("not a recording")
    short = recording("short", seconds=0.4)
    assert emoinv("enroll", "ana", recording("one", seed=1), bad, short, recording("two", seed=2), "--json") == 2
    answer = emoinv.answer()
    assert [each["accepted"] for each in answer["utterances"]] == [True, False, False, True]
    assert [each["reason"] for each in answer["utterances"]][1:3] == ["unreadable", "too_short"]
    assert answer["exemplars"] == 2


def test_nothing_is_stored_where_nothing_was_taken(emoinv: Shell, recording: Callable[..., Path]) -> None:
    assert emoinv("enroll", "ana", recording("short", seconds=0.4)) == 3
    assert "refused" in emoinv.out
    assert emoinv("verify", "ana", recording("later")) == 3
    assert "ana" in emoinv.err


def test_another_voice_is_not_enrolled_into_the_profile(emoinv: Shell, recording: Callable[..., Path]) -> None:
    bob, *anas = recording("bob", seed=2, f0_hz=BOB_HZ), recording("one", seed=1), recording("two", seed=3)
    assert emoinv("enroll", "ana", bob, *anas, "--json") == 2  # wherever it stands
    assert [each["reason"] for each in emoinv.answer()["utterances"]] == ["other_speaker", "accepted", "accepted"]
    assert emoinv.answer()["exemplars"] == 2


def test_two_recordings_of_two_voices_are_no_profile_unless_somebody_is_sure(
    emoinv: Shell, recording: Callable[..., Path]
) -> None:
    files = [recording("ana", seed=1), recording("bob", seed=2, f0_hz=BOB_HZ)]
    assert emoinv("enroll", "ana", *files) == 3
    assert "--sure" in emoinv.err
    assert emoinv("enroll", "ana", *files, "--sure", "--json") == 0
    assert emoinv.answer()["exemplars"] == 2
    assert emoinv("profiles", "show", "ana", "--json") == 0


def test_an_existing_profile_is_never_overwritten_unasked(with_ana: Shell, recording: Callable[..., Path]) -> None:
    more = recording("more", seed=5)
    assert with_ana("enroll", "ana", more) == 3
    assert "--add" in with_ana.err and "--replace" in with_ana.err
    assert with_ana("enroll", "ana", "--add", more, "--json") == 0
    assert with_ana.answer()["exemplars"] == 4
    assert with_ana("enroll", "ana", more, "--replace", "--json") == 0
    assert with_ana.answer()["exemplars"] == 1


def test_an_expired_profile_is_refused(emoinv: Shell, recording: Callable[..., Path]) -> None:
    assert emoinv("enroll", "ana", recording("one", seed=1), "--expires", "0.00000001") == 0
    assert emoinv("verify", "ana", recording("later", seed=9)) == 3
    assert "expired" in emoinv.err


class FakeMicrophone:
    """What `emoinv enroll --mic` reads: chunks of 20 ms from a list of waveforms and gaps."""

    items: ClassVar[list[NDArray[np.float32] | Gap]] = []

    def __init__(self, sample_rate: int, device: int | str | None) -> None:
        assert sample_rate == 16000

    def __enter__(self) -> Iterator[NDArray[np.float32] | Gap]:
        for item in self.items:
            if isinstance(item, Gap):
                yield item
            else:
                yield from (item[at : at + 320] for at in range(0, len(item), 320))

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[NDArray[np.float32] | Gap]]:
    """A function that makes the fake microphone hear utterances, each with silence around it."""
    monkeypatch.setattr("emoinv_edge.microphone.Microphone", FakeMicrophone)

    def speak(*utterances: tuple[float, int, float]) -> list[NDArray[np.float32] | Gap]:
        pause = np.zeros(24000, np.float32)
        FakeMicrophone.items = [pause]
        for seconds, seed, f0_hz in utterances:
            FakeMicrophone.items += [synthesise(seconds, seed, f0_hz), pause]
        return FakeMicrophone.items

    return speak


def test_the_microphone_is_read_until_there_is_enough(emoinv: Shell, speaking: Callable[..., Any]) -> None:
    speaking(*((4.0, seed, ANA_HZ) for seed in range(1, 7)))
    assert emoinv("enroll", "ana", "--mic", "--json") == 0
    answer = emoinv.answer()
    assert answer["progress"] == 1.0
    assert 14.0 <= answer["seconds"] < 18.0  # four utterances
    assert len(answer["utterances"]) == answer["exemplars"] == 4
    for each in answer["utterances"]:
        assert each["quality"]["net_speech_s"] == pytest.approx(4.0, abs=0.4)


def test_the_microphone_reports_what_it_refused_and_why(emoinv: Shell, speaking: Callable[..., Any]) -> None:
    speaking((3.0, 1, ANA_HZ), (0.5, 2, ANA_HZ), (3.0, 3, BOB_HZ), (4.0, 4, ANA_HZ), (4.0, 5, ANA_HZ))
    assert emoinv("enroll", "ana", "--mic") == 0
    lines = emoinv.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["taken", "refused", "refused", "taken", "taken"]
    assert "Too little speech" in lines[1]
    assert "does not sound like" in lines[2]


def test_a_click_at_the_microphone_is_not_worth_a_word(emoinv: Shell, speaking: Callable[..., Any]) -> None:
    speaking((0.12, 1, ANA_HZ), (4.0, 2, ANA_HZ))
    assert emoinv("enroll", "ana", "--mic", "--json") == 0
    assert [each["reason"] for each in emoinv.answer()["utterances"]] == ["accepted"]


def test_an_utterance_with_lost_audio_is_dropped_and_reported(emoinv: Shell, speaking: Callable[..., Any]) -> None:
    items = speaking((3.0, 1, ANA_HZ), (3.0, 2, ANA_HZ))
    items[1:2] = [items[1][:16000], Gap(8000, "the reader fell behind")]
    assert emoinv("enroll", "ana", "--mic", "--json") == 0
    answer = emoinv.answer()
    assert [each["reason"] for each in answer["utterances"]] == ["gap", "accepted"]
    assert answer["exemplars"] == 1


def test_a_microphone_that_hears_nobody_stores_nothing(emoinv: Shell, speaking: Callable[..., Any]) -> None:
    speaking()
    assert emoinv("enroll", "ana", "--mic") == 3
    assert not emoinv.store.exists()


@pytest.mark.parametrize("words", [[], ["--mic", "a.wav"]], ids=["neither", "both"])
def test_files_or_the_microphone_must_be_chosen(emoinv: Shell, words: list[str]) -> None:
    assert emoinv("enroll", "ana", *words) == 3
    assert "or --mic to record here" in emoinv.err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "a week", "1e9"])
def test_an_expiry_must_lie_ahead(emoinv: Shell, text: str) -> None:
    assert emoinv("enroll", "ana", "more.wav", "--expires", text) == 3
    assert "expected days above 0, at most 36525" in emoinv.err
