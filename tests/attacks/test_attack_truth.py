"""Kind 3: nothing but an accept is true, and nothing but an accept makes a command that decides exit with 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from emoinv_edge.adaptation import Adapter
from emoinv_edge.cli import main
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.store import PLAINTEXT, ProfileStore
from tests.builders import ANA_HZ, BOB_HZ, RATE, enrolled, synthesise

HERS = synthesise(3.0, 9, ANA_HZ)
NOT_HERS = [synthesise(3.0, 9, BOB_HZ), np.zeros(RATE, np.float32), synthesise(0.4, 9, ANA_HZ)]


def test_every_result_of_a_decision_is_true_for_an_accept_only(encoder: Encoder, store: ProfileStore) -> None:
    verifier, adapter = store.verifier("ana", encoder), Adapter(encoder, store, "ana")
    for verify in (verifier.verify, verifier.examine, adapter.verify):
        assert verify(HERS, RATE)
        for waveform in NOT_HERS:
            assert not verify(waveform, RATE)
    enroller = Enroller(encoder)
    assert enroller.add(HERS, RATE) and not enroller.add(NOT_HERS[1], RATE)


def test_no_tuple_stands_for_a_decision(encoder: Encoder, store: ProfileStore) -> None:
    """A tuple that holds a reject is true."""
    verifier, adapter = store.verifier("ana", encoder), Adapter(encoder, store, "ana")
    for result in (verifier.verify(HERS, RATE), verifier.examine(HERS, RATE), adapter.verify(HERS, RATE)):
        assert not isinstance(result, (tuple, list))
    assert [bool(verdict) for verdict in Verdict] == [verdict is Verdict.ACCEPT for verdict in Verdict]


@pytest.fixture
def words(tmp_path: Path, encoder: Encoder) -> list[str]:
    """The options of a store in which ana is enrolled."""
    ProfileStore(tmp_path / "p.db", PLAINTEXT).put(enrolled(encoder, "ana", ANA_HZ))
    soundfile.write(tmp_path / "ana.wav", HERS, RATE)
    soundfile.write(tmp_path / "bob.wav", NOT_HERS[0], RATE)
    return ["--store", str(tmp_path / "p.db"), "--plaintext", "--model", str(encoder.path)]


@pytest.mark.parametrize(
    "attack",
    [
        "verify ana -h", "verify ana --help", "verify ana --he", "verify --h", "verify -h ana FILE",
        "verify ana FILE -h", "--version verify ana FILE", "--vers verify ana FILE",
        "--help verify ana FILE", "-h verify ana FILE",
        "--he identify FILE", "identify FILE --help", "identify -h", "listen ana --help", "listen --file FILE ana -h",
        "verify ana FILE --js --help", "verify ana", "verify", "listen", "identify", "verify -- ana",
        "verify ana FILE x", "verify ana FILE --store", "verify ana FILE --ada", "model verify FILE --help",
    ],
)  # fmt: skip
def test_what_decides_nothing_never_exits_with_0(
    attack: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = attack.replace("FILE", str(tmp_path / "ana.wav")).split()
    assert main(arguments) == 3
    assert main([*arguments, *words]) == 3
    capsys.readouterr()


def test_a_name_or_a_file_that_looks_like_an_option_stays_a_name_behind_two_dashes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("--help.wav", NOT_HERS[0], RATE)
    assert main(["verify", *words, "--", "ana", "ana.wav"]) == 0
    assert main(["verify", *words, "--", "ana", "--help.wav"]) == 1
    assert main(["verify", *words, "--", "-h", "ana.wav"]) == 3
    assert main(["verify", *words, "--", "--help", "ana.wav"]) == 3
    assert main(["identify", *words, "--", "--help.wav"]) == 1
    capsys.readouterr()


def test_help_still_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main(["--version"]) == 0 and main(["enroll", "--help"]) == 0
    assert main(["verify", "--help"]) == 3
    assert "exit status" in capsys.readouterr().out
