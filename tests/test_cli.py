"""The emoinv command: what it answers, with which exit status, and that nothing but "accept" exits with 0."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.calibration import FarTable, Term
from emoinv_edge.cli import COMMANDS, DECIDING, build_parser, doctor, main, verify
from emoinv_edge.cli.options import parse_far
from emoinv_edge.cli.terminal import one_in
from emoinv_edge.microphone import Gap
from tests.builders import calibration, in_file

# Fits the tiny encoders: cosines of about 0.9 within a voice, at most 0.5 between two.
CALIBRATION = calibration(
    bias=-14.0,
    terms=(Term("cosine", 20.0, -1.0, 1.0),),
    far_tables=tuple(FarTable(count, (0.5, 0.01, 0.001), (-3.0, 0.0, 1.0)) for count in (1, 100)),
    num_impostor_speakers=3000,
)
ANA_HZ, BOB_HZ = 120.0, 210.0


class Shell:
    """Runs emoinv in this process with one model and one store, and keeps what it printed."""

    def __init__(self, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model = model
        self.folder = folder
        self.store = folder / "profiles.db"
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path, model: bool = True, store: bool = True) -> int:
        words = [str(argument) for argument in arguments]
        words += ["--model", str(self.model)] if model else []
        words += ["--store", str(self.store)] if store else []
        status = main(words)
        self.out, self.err = self._capsys.readouterr()
        return status

    def answer(self) -> Any:
        """The JSON value that was printed, alone on standard output."""
        return json.loads(self.out)


@pytest.fixture
def recording(tmp_path: Path, speechlike: Callable[..., NDArray[np.float32]]) -> Callable[..., Path]:
    """A function that writes speech to a WAV file and returns its path."""

    def write(name: str, seconds: float = 3.0, seed: int = 0, f0_hz: float = ANA_HZ, sample_rate: int = 16000) -> Path:
        path = tmp_path / f"{name}.wav"
        pause = np.zeros(sample_rate // 4, np.float32)
        speech = speechlike(seconds, seed, f0_hz, sample_rate)
        soundfile.write(path, np.concatenate([pause, speech, pause]), sample_rate)
        return path

    return write


@pytest.fixture
def emoinv(make_encoder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command with a calibrated tiny model and an empty store."""
    return Shell(make_encoder(metadata=in_file(CALIBRATION)), tmp_path, capsys)


@pytest.fixture
def with_ana(emoinv: Shell, recording: Callable[..., Path]) -> Shell:
    """The command with ana enrolled."""
    files = [recording(f"ana-{seed}", seed=seed) for seed in (1, 2, 3)]
    assert emoinv("enroll", "ana", *files) == 0, emoinv.out + emoinv.err
    return emoinv


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
    assert "5 impostor speakers" in doctor_answers(with_ana)["device calibration"]["value"]
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
def speaking(
    monkeypatch: pytest.MonkeyPatch, speechlike: Callable[..., NDArray[np.float32]]
) -> Callable[..., list[NDArray[np.float32] | Gap]]:
    """A function that makes the fake microphone hear utterances, each with silence around it."""
    monkeypatch.setattr("emoinv_edge.microphone.Microphone", FakeMicrophone)

    def speak(*utterances: tuple[float, int, float]) -> list[NDArray[np.float32] | Gap]:
        pause = np.zeros(24000, np.float32)
        FakeMicrophone.items = [pause]
        for seconds, seed, f0_hz in utterances:
            FakeMicrophone.items += [speechlike(seconds, seed, f0_hz), pause]
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


def doctor_answers(shell: Shell, *words: str) -> dict[str, dict[str, str]]:
    """The doctor's findings by name."""
    shell("doctor", "--json", *words)
    return {finding["name"]: finding for finding in shell.answer()["findings"]}


def test_the_doctor_names_versions_models_and_the_store(with_ana: Shell) -> None:
    found = doctor_answers(with_ana)
    for name in ("emoinv-edge", "Python", "numpy", "onnxruntime", "CPU", "--model", "store"):
        assert found[name]["status"] == "ok", found[name]
    assert "3000 impostor speakers" in found["--model"]["value"]
    assert str(with_ana.store) in found["store"]["value"]


def test_the_doctor_notes_where_the_usual_rate_is_not_supported(
    emoinv: Shell, make_encoder: Callable[..., Path]
) -> None:
    emoinv.model = make_encoder(metadata=in_file(dataclasses.replace(CALIBRATION, num_impostor_speakers=100)))
    found = doctor_answers(emoinv)["--model"]
    assert found["status"] == "note"
    assert "--far 1/33," in found["cure"]


def test_the_doctor_cures_a_missing_portaudio(emoinv: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(fake))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    found = doctor_answers(emoinv)["PortAudio"]
    assert found["status"] == "note"
    assert "libportaudio2" in found["cure"]


def test_the_doctor_lists_microphones(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("sounddevice")
    fake.get_portaudio_version = lambda: (1, "PortAudio V19.7.0, revision x")
    fake.query_devices = lambda: [
        {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 48000.0},
        {"name": "Array", "max_input_channels": 4, "default_samplerate": 44100.0},
    ]
    fake.PortAudioError = RuntimeError
    fake.default = argparse.Namespace(device=(1, 0))
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    found = doctor_answers(emoinv)
    assert found["microphone 1"]["value"] == "Array (44100 Hz, default)"
    assert "microphone 0" not in found


def test_the_doctor_finds_a_package_that_does_not_import(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)  # makes `import soxr` an ImportError
    found = doctor_answers(emoinv)["soxr"]
    assert found["status"] == "fault"
    assert "pip install soxr" in found["cure"]


def test_the_doctor_refuses_the_onnxruntime_that_crashes(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda distribution: "1.21.0")
    assert doctor_answers(emoinv)["onnxruntime"]["status"] == "fault"


def test_the_doctor_finds_a_damaged_model_and_a_foreign_store(emoinv: Shell, tmp_path: Path) -> None:
    emoinv.model = tmp_path / "damaged.onnx"
    emoinv.model.write_bytes(b"not a model")
    emoinv.store.write_bytes(b"not a store" * 1000)
    found = doctor_answers(emoinv)
    assert found["--model"]["status"] == "fault"
    assert found["store"]["status"] == "fault"
    assert emoinv("doctor") == 3
    assert "until that is cured" in emoinv.out


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("model name\t: A Processor\nflags\t\t: fpu avx512_vnni\n", "ok", "AVX512-VNNI"),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", "ok", "dot product (ASIMDDP)"),
        ("model name\t: Old\nflags\t\t: fpu sse2\n", "note", "no dot products of int8"),
        ("", "ok", "cannot be read on this system"),
    ],
    ids=["x86", "arm", "old", "unreadable"],
)
def test_the_doctor_reads_int8_instructions(tmp_path: Path, text: str, status: str, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    finding = doctor.check_cpu(path)[1]
    assert (finding.status, finding.value) == (status, expected)


def test_the_doctor_survives_checks_that_fail(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> list[doctor.Finding]:
        raise MemoryError("a broken machine")

    for name in ("check_python", "check_packages", "check_cpu", "check_microphones", "check_models", "check_store"):
        monkeypatch.setattr(doctor, name, fail)
    assert emoinv("doctor", "--json") == 3
    assert [finding["status"] for finding in emoinv.answer()["findings"]] == ["fault"] * 6


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


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "a week", "1e9"])
def test_an_expiry_must_lie_ahead(emoinv: Shell, text: str) -> None:
    assert emoinv("enroll", "ana", "more.wav", "--expires", text) == 3
    assert "expected days above 0, at most 36525" in emoinv.err
