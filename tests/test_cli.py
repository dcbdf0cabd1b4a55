"""The emoinv command: what it answers, with which exit status, and that nothing but "accept" exits with 0."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from emoinv_edge.cli import COMMANDS, DECIDING, build_parser, main, verify
from emoinv_edge.cli.options import parse_far
from emoinv_edge.cli.terminal import one_in
from tests.builders import in_file
from tests.shell import BOB_HZ, CALIBRATION, Shell


def test_the_enrolled_speaker_is_accepted_with_status_0(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("later", seed=9)) == 0
    assert with_ana.out.startswith("ACCEPT  ana  LLR ")
    assert "1 in 100" in with_ana.out


def test_each_decision_is_counted_once_in_the_audit_trail(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("later", seed=9)) == 0
    assert with_ana("verify", "ana", recording("bob", seed=9, f0_hz=BOB_HZ)) == 1
    assert with_ana("profiles", "show", "ana", "--json", model=False) == 0
    (day,) = with_ana.answer()["verified"].values()
    assert day == {"accept": 1, "reject": 1}


def test_another_speaker_is_rejected_with_status_1(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("bob", seed=9, f0_hz=BOB_HZ)) == 1
    assert with_ana.out.startswith("REJECT  ana  LLR ")


def test_too_little_speech_is_no_decision_with_status_2(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("short", seconds=0.4)) == 2
    assert with_ana.out.startswith("NO DECISION  ana  too little speech")


def test_json_carries_the_decision_and_no_sentinel_score(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("later", seed=9), "--json") == 0
    accepted = with_ana.answer()
    assert accepted["verdict"] == "accept"
    assert accepted["score"] >= accepted["threshold"]
    assert accepted["quality"]["net_speech_s"] > 2.0
    assert with_ana("verify", "ana", recording("short", seconds=0.4), "--json") == 2
    undecided = with_ana.answer()
    assert undecided["verdict"] == "no_decision"
    assert undecided["score"] is None


def test_what_was_done_to_the_audio_is_reported(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "ana", recording("phone", seed=9, sample_rate=48000), "--json") == 0
    assert with_ana.answer()["notes"] == ["resampled from 48000 to 16000 Hz"]


def test_a_clear_accept_joins_the_profile_only_when_asked(with_ana: Shell, recording: Callable[..., Path]) -> None:
    later = recording("later", seconds=4.0, seed=9)
    assert with_ana("verify", "ana", later, "--json") == 0
    assert with_ana.answer()["adapted"] is False
    assert with_ana("verify", "ana", later, "--adapt", "--json") == 0
    assert with_ana.answer()["adapted"] is True
    assert with_ana("verify", "ana", recording("bob", seed=9, f0_hz=BOB_HZ), "--adapt", "--json") == 1
    assert with_ana.answer()["adapted"] is False
    assert with_ana("profiles", "rollback", "ana", model=False) == 0


def test_a_calibration_of_this_device_changes_the_scores_and_is_shown(
    with_ana: Shell, recording: Callable[..., Path]
) -> None:
    later = recording("later", seed=9)
    with_ana("verify", "ana", later, "--json")
    before = with_ana.answer()
    for number in range(5):
        clip = recording(f"visitor-{number}", seed=20 + number, f0_hz=180.0 + 20.0 * number)
        folder = with_ana.folder / "visitors" / str(number)
        folder.mkdir(parents=True)
        clip.rename(folder / clip.name)
    assert with_ana("calibrate", "--impostors", with_ana.folder / "visitors", "--json") == 0
    shift = with_ana.answer()["shift"]
    assert abs(shift) > 0.01
    with_ana("verify", "ana", later, "--json")
    assert with_ana.answer()["score"] == pytest.approx(before["score"] + shift)
    assert "5 impostor speakers" in with_ana.findings()["device calibration"]["value"]
    assert with_ana("calibrate", "--reset") == 0
    with_ana("verify", "ana", later, "--json")
    assert with_ana.answer()["score"] == before["score"]


def test_a_lower_false_accept_rate_asks_for_a_higher_score(with_ana: Shell, recording: Callable[..., Path]) -> None:
    later = recording("later", seed=9)
    thresholds = []
    for rate in ("1/10", "0.01", "1/1,000"):
        with_ana("verify", "ana", later, "--far", rate, "--json")
        thresholds.append(with_ana.answer()["threshold"])
    assert thresholds == sorted(set(thresholds))


def test_a_rate_beyond_the_calibration_is_refused_or_marked(with_ana: Shell, recording: Callable[..., Path]) -> None:
    later = recording("later", seed=9)
    assert with_ana("verify", "ana", later, "--far", "1/1000000") == 3
    refusal = with_ana.err
    assert "3000 impostor speakers" in with_ana.err
    assert with_ana("verify", "ana", later, "--far", "1/1000") in (0, 1)  # the rate that the message names
    assert "1/1000, at best" in refusal
    assert with_ana("verify", "ana", later, "--far", "1/1000000", "--extrapolate", "--json") in (0, 1)
    assert with_ana.answer()["extrapolated"] is True


def test_a_silent_file_is_no_decision(with_ana: Shell, tmp_path: Path) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    assert with_ana("verify", "ana", path, "--json") == 2
    assert with_ana.answer()["reason"].startswith("silent")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("not a recording"), "holds text"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: soundfile.write(path, np.full(16000, np.nan), 16000, subtype="FLOAT"), "NaN"),
    ],
    ids=["missing", "text", "empty", "nan"],
)
def test_an_unusable_file_is_an_error_with_its_cure(
    with_ana: Shell, tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    path = tmp_path / "broken.wav"
    make(path)
    assert with_ana("verify", "ana", path, "--json") == 3
    assert with_ana.answer()["error"]["type"] == "AudioError"
    assert expected in with_ana.err
    assert "Traceback" not in with_ana.err


def test_an_unknown_speaker_is_an_error(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("verify", "eve", recording("eve")) == 3
    assert "eve" in with_ana.err
    assert "emoinv profiles list" in with_ana.err


def test_a_profile_of_another_model_is_refused(
    with_ana: Shell, make_encoder: Callable[..., Path], recording: Callable[..., Path]
) -> None:
    other = make_encoder(seed=1, metadata=in_file(CALIBRATION))
    assert with_ana("verify", "ana", recording("later", seed=9), "--model", other, model=False) == 3
    assert "enrol the speaker again" in with_ana.err


def test_a_model_without_calibration_gives_no_decision_at_all(
    with_ana: Shell, tiny_encoder_path: Path, recording: Callable[..., Path]
) -> None:
    assert with_ana("enroll", "bea", recording("bea"), "--model", tiny_encoder_path, model=False) == 3
    assert "calibration" in with_ana.err


def test_who_is_speaking_is_found_among_the_enrolled(with_ana: Shell, recording: Callable[..., Path]) -> None:
    assert with_ana("enroll", "bob", *(recording(f"bob-{seed}", seed=seed, f0_hz=BOB_HZ) for seed in (1, 2))) == 0
    assert with_ana("identify", recording("later", seed=9)) == 0
    assert with_ana.out.startswith("ACCEPT  ana")
    assert with_ana("identify", recording("bob-later", seed=9, f0_hz=BOB_HZ), "--json") == 0
    assert with_ana.answer()["identified"] == "bob"
    assert with_ana("identify", recording("eve", seed=9, f0_hz=330.0), "--json") == 1
    assert with_ana.answer()["identified"] is None
    assert with_ana("identify", recording("bob-later", seed=9, f0_hz=BOB_HZ), "--among", "ana") == 1
    assert with_ana.out.startswith("REJECT  nobody")


def test_nobody_is_identified_without_profiles(emoinv: Shell, recording: Callable[..., Path]) -> None:
    assert emoinv("identify", recording("ana")) == 3
    assert "enrol a speaker first" in emoinv.err


@pytest.mark.parametrize(
    "words",
    [[], ["frobnicate"], ["verify"], ["verify", "ana"], ["verify", "ana", "a.wav", "--far", "2"]],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_wrong_usage_exits_with_3_since_2_means_no_decision(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 3
    assert "--help" in capsys.readouterr().err


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    (subparsers,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert len(subparsers.choices) == len(COMMANDS)
    for name in subparsers.choices:
        assert main([name, "--help"]) == (3 if name in DECIDING else 0)  # help accepts nobody
        text = capsys.readouterr().out
        assert f"emoinv {name}" in text.partition("example")[2], name


def test_a_defect_never_reads_as_a_reject(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(verify, "run", fail)
    assert main(["verify", "ana", "a.wav", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {"type": "RuntimeError", "message": "a defect"}
    assert "Traceback" in err


def test_ctrl_c_exits_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    program = (
        "import sys, time; from emoinv_edge.cli import main, verify;"
        "verify.run = lambda args: (print('ready', flush=True), time.sleep(60));"
        "sys.exit(main(['verify', 'ana', 'a.wav']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=300)
    assert child.returncode == 130
    assert err == "emoinv: stopped with ctrl-C\n"


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = "import sys; from emoinv_edge.cli import main; sys.exit(main(['doctor', '--json']))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=300
        )
    finally:
        os.close(write_end)
    assert done.returncode == 3
    assert done.stderr == ""


def test_help_loads_neither_numpy_nor_onnxruntime_nor_rich() -> None:
    program = (
        "import sys; from emoinv_edge.cli import main; assert main(['--help']) == 0;"
        "heavy = {'numpy', 'onnxruntime', 'rich', 'soundfile', 'sounddevice', 'cryptography'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@given(st.integers(min_value=2, max_value=10**9))
def test_rates_are_read_as_fractions_and_decimals(impostors: int) -> None:
    assert parse_far(f"1/{impostors}") == 1.0 / impostors
    assert parse_far(f"1/{impostors:,}") == 1.0 / impostors
    assert parse_far(repr(1.0 / impostors)) == pytest.approx(1.0 / impostors, rel=1e-12)
    if impostors >= 5:
        assert one_in(1.0 / impostors) == f"1 in {impostors:,}"


@given(st.text(max_size=12))
def test_what_is_no_rate_is_refused(text: str) -> None:
    try:
        rate = parse_far(text)
    except argparse.ArgumentTypeError:
        return
    assert 0.0 < rate < 1.0
