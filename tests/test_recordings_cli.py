"""Several recordings, one channel or each, names and encodings: `verify`, `identify`, `compare` and `embed`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from emoinv_edge.cli import main
from tests.builders import RATE, calibration, in_file, synthesise
from tests.shell import ANA_HZ, BOB_HZ, Shell


def written(folder: Path, name: str, *channels: NDArray[np.float32]) -> Path:
    """A recording of these channels."""
    soundfile.write(folder / name, np.stack(channels, axis=1), RATE, format="WAV")
    return folder / name


def voice(seed: int, f0_hz: float = ANA_HZ, seconds: float = 3.0) -> NDArray[np.float32]:
    pause = np.zeros(RATE // 4, np.float32)
    return np.concatenate([pause, synthesise(seconds, seed, f0_hz), pause])


@pytest.fixture
def emoinv(make_encoder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command with ana enrolled."""
    shell = Shell(make_encoder(metadata=in_file(calibration())), tmp_path, capsys)
    assert shell("enroll", "ana", *(written(tmp_path, f"ana-{seed}.wav", voice(seed)) for seed in (1, 2, 3))) == 0, (
        shell.err
    )
    return shell


@pytest.fixture
def files(emoinv: Shell) -> dict[str, Path]:
    """A recording for each outcome."""
    unreadable = emoinv.folder / "notes.wav"
    unreadable.write_text("these are notes, not sound")
    return {
        "own": written(emoinv.folder, "own.wav", voice(9)),
        "stranger": written(emoinv.folder, "stranger.wav", voice(9, BOB_HZ)),
        "short": written(emoinv.folder, "short.wav", voice(9, seconds=0.3)),
        "unreadable": unreadable,
        "missing": emoinv.folder / "missing.wav",
    }


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (("own", "own"), 0),
        (("own", "stranger"), 1),
        (("stranger", "short", "own"), 2),
        (("own", "missing", "own"), 3),
        (("unreadable", "short", "stranger"), 3),
    ],
)
@pytest.mark.parametrize("command", ["verify", "identify"])
def test_each_recording_has_its_answer_and_the_status_is_the_highest(
    emoinv: Shell, files: dict[str, Path], command: str, names: tuple[str, ...], status: int
) -> None:
    who = ["ana"] if command == "verify" else []
    expected = {"own": "accept", "stranger": "reject", "short": "no_decision"}
    assert emoinv(command, *who, *(files[name] for name in names), "--json") == status
    answers = emoinv.answers()
    assert [answer["file"] for answer in answers] == [str(files[name]) for name in names]
    assert [answer.get("verdict") for answer in answers] == [expected.get(name) for name in names]
    assert all(("error" in answer) == (name not in expected) for answer, name in zip(answers, names, strict=True))


def test_lines_name_their_recording_and_a_bad_one_its_reason(emoinv: Shell, files: dict[str, Path]) -> None:
    assert emoinv("verify", "ana", files["own"], files["missing"], files["stranger"]) == 3
    lines = emoinv.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("ACCEPT") and lines[0].endswith("own.wav")
    assert lines[1].startswith("REJECT") and lines[1].endswith("stranger.wav")
    assert "missing.wav: no such file" in emoinv.err


def test_a_lone_recording_that_cannot_be_read_is_the_commands_own_error(emoinv: Shell, files: dict[str, Path]) -> None:
    assert emoinv("verify", "ana", files["missing"], "--json") == 3
    assert emoinv.answers()[0]["error"]["type"] == "AudioError"


def test_a_table_has_a_row_for_each_recording_and_opens_in_a_spreadsheet(emoinv: Shell, files: dict[str, Path]) -> None:
    table = emoinv.folder / "scores.csv"
    assert emoinv("verify", "ana", *files.values(), "--csv", table) == 3
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["accept", "reject", "no_decision", "", ""]
    assert float(rows[0]["score"]) >= float(rows[0]["threshold"]) > float(rows[1]["score"])
    assert rows[2]["score"] == "" and rows[2]["code"] == "too_short"
    assert "no such file" in rows[4]["error"]


def test_a_table_that_cannot_be_written_is_an_error_before_anything_is_decided(
    emoinv: Shell, files: dict[str, Path]
) -> None:
    assert emoinv("verify", "ana", files["own"], "--csv", emoinv.folder / "no" / "folder.csv") == 3
    assert emoinv.out == ""


def test_all_scores_are_given_the_best_first(emoinv: Shell, files: dict[str, Path]) -> None:
    bob = [written(emoinv.folder, f"bob-{seed}.wav", voice(seed, BOB_HZ)) for seed in (1, 2)]
    assert emoinv("enroll", "bob", *bob) == 0
    table = emoinv.folder / "all.csv"
    assert emoinv("identify", files["stranger"], "--all", "--json", "--csv", table) == 0
    (answer,) = emoinv.answers()
    assert answer["identified"] == "bob"
    assert list(answer["scores"]) == ["bob", "ana"]
    assert answer["scores"]["bob"] == answer["score"] > answer["scores"]["ana"]
    with table.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["LLR ana"]) == answer["scores"]["ana"]
    assert emoinv("identify", files["short"], "--all", "--json") == 2
    assert emoinv.answers()[0]["scores"] == {}


def test_each_channel_of_a_call_is_decided_by_itself(emoinv: Shell) -> None:
    call = written(emoinv.folder, "call.wav", voice(9), voice(9, BOB_HZ))
    assert emoinv("verify", "ana", call, "--channel", "each", "--json") == 1
    assert [(answer["channel"], answer["verdict"]) for answer in emoinv.answers()] == [(1, "accept"), (2, "reject")]
    assert emoinv("verify", "ana", call, "--channel", "1") == 0
    assert emoinv("verify", "ana", call, "--channel", "2") == 1
    assert emoinv("verify", "ana", call, "--channel", "3") == 3
    assert "1 to 2" in emoinv.err
    assert emoinv("listen", "ana", "--file", call, "--channel", "1") == 0
    assert emoinv("listen", "ana", "--file", call, "--channel", "2") == 1


def test_every_channel_of_a_bad_file_is_one_error(emoinv: Shell, files: dict[str, Path]) -> None:
    assert emoinv("verify", "ana", files["own"], files["unreadable"], "--channel", "each", "--json") == 3
    assert [("error" in answer) for answer in emoinv.answers()] == [False, True]


@pytest.mark.parametrize("channel", ["0", "-1", "left", "each", "65"])
def test_what_is_no_channel_of_one_person_is_wrong_usage(emoinv: Shell, files: dict[str, Path], channel: str) -> None:
    assert emoinv("enroll", "bob", files["own"], "--channel", channel) == 3


def test_inverted_channels_are_reported_as_that_and_the_cure_works(emoinv: Shell) -> None:
    faint = 1e-3 * np.random.default_rng(0).standard_normal((2, len(voice(9)))).astype(np.float32)
    path = written(emoinv.folder, "inverted.wav", voice(9) + faint[0], -voice(9) + faint[1])
    for command in (("verify", "ana"), ("identify",)):
        assert emoinv(*command, path) == 2
        assert "channels 1 and 2 are inverted" in emoinv.out and "--channel 1" in emoinv.out
        assert emoinv(*command, path, "--channel", "1") == 0
    assert emoinv("enroll", "bob", path) == 3
    assert "inverted" in emoinv.out
    assert emoinv("compare", path, path) == 2
    assert "inverted" in emoinv.out


def test_a_channel_of_noise_is_reported_as_that_where_it_hides_the_speech(emoinv: Shell) -> None:
    loud = 0.1 * np.random.default_rng(0).standard_normal(len(voice(9))).astype(np.float32)
    path = written(emoinv.folder, "noisy.wav", 0.5 * voice(9), np.clip(loud, -1, 1))
    status = emoinv("verify", "ana", path)
    if status == 2:  # the speech drowned
        assert "channel 2 is steady noise" in emoinv.out
    assert emoinv("verify", "ana", path, "--channel", "1") == 0


def test_a_longest_duration_can_be_set(emoinv: Shell, files: dict[str, Path]) -> None:
    assert emoinv("verify", "ana", files["own"], "--max-duration", "2") == 3
    assert "--max-duration" in emoinv.err
    assert emoinv("verify", "ana", files["own"], "--max-duration", "10") == 0


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_a_recording_in_every_command(
    emoinv: Shell, files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "-":
        pytest.importorskip("fcntl")
    commands = (("verify", "ana"), ("identify",), ("compare", files["own"]), ("embed", "-o", emoinv.folder / "e.npz"))
    for command in commands:
        with files["own"].open("rb") as content:
            if name == "-":
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.read())))
                assert emoinv(*command, name) == 0, emoinv.err
            else:
                kept = os.dup(0)
                os.dup2(content.fileno(), 0)
                try:
                    assert emoinv(*command, name) == 0, emoinv.err
                finally:
                    os.dup2(kept, 0)
                    os.close(kept)


@pytest.mark.parametrize("name", ["caf\udce9.wav", "red\x1b[31m.wav", "two\nlines.wav", "語 é.wav"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_decision_is_never_lost_to_printing(
    emoinv: Shell, files: dict[str, Path], name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = emoinv.folder / name
    try:
        path.write_bytes(files["own"].read_bytes())
    except (OSError, ValueError):
        pytest.skip("this system has no such file names")
    for options in ((), ("--json",)):
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        words = ["verify", "ana", str(path), str(path), *options]
        assert main([*words, "--model", str(emoinv.model), "--store", str(emoinv.store)]) == 0
        lines = shown.getvalue().decode(encoding).splitlines()
        assert len(lines) == 2 and "\x1b" not in lines[0]
        if options:
            assert shown.getvalue().isascii()
            assert json.loads(lines[0])["verdict"] == "accept"


@pytest.mark.parametrize("command", [("verify", "ana"), ("identify",), ("enroll", "bob")])
def test_an_error_shows_what_a_terminal_would_act_on_escaped(emoinv: Shell, command: tuple[str, ...]) -> None:
    assert emoinv(*command, "\x1b[2J.wav") == 3
    assert "\x1b" not in emoinv.out + emoinv.err and "\\x1b[2J.wav" in emoinv.out + emoinv.err


def test_silence_is_no_decision_in_every_command(emoinv: Shell, files: dict[str, Path]) -> None:
    zeros = written(emoinv.folder, "zeros.wav", np.zeros(3 * RATE, np.float32))
    for command in (("verify", "ana"), ("identify",), ("compare", files["own"])):
        assert emoinv(*command, zeros, "--json") == 2
        assert emoinv.answers()[0]["code"] == "silent"
    assert emoinv("listen", "ana", "--file", zeros) == 2
    assert emoinv("enroll", "bob", zeros, files["stranger"], "--json") == 2
    assert emoinv.answers()[0]["utterances"][0]["reason"] == "silent"
    assert emoinv("embed", zeros, files["own"], "-o", emoinv.folder / "e.npz") == 2
    assert "silent" in emoinv.err


def test_a_session_takes_one_channel_and_not_each(emoinv: Shell) -> None:
    call = written(emoinv.folder, "call.wav", voice(9), voice(9, BOB_HZ))
    again = written(emoinv.folder, "again.wav", voice(10), voice(10, BOB_HZ))
    assert emoinv("verify", "ana", call, again, "--session", "--channel", "1", "--extrapolate") == 0, emoinv.err
    assert emoinv("verify", "ana", call, again, "--session", "--channel", "each") == 3
    assert "--session" in emoinv.err
