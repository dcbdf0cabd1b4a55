"""The demo: its bundled clips, the user's own, and what it reports when a decision is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from emoinv_edge.cli import main
from emoinv_edge.cli.demo import find_clips
from emoinv_edge.errors import AudioError
from tests.builders import in_file, synthesise
from tests.test_cli import CALIBRATION

CLIPS = Path(str(files("emoinv_edge"))) / "demo" / "clips"
BASE = Path(str(files("emoinv_edge"))) / "models" / "base.onnx"
EMOTIONS = {"neutral", "excited", "tense", "tired", "subdued"}


@pytest.fixture
def model(make_encoder: Callable[..., Path]) -> str:
    """A tiny model with a calibration that fits it."""
    return str(make_encoder(metadata=in_file(CALIBRATION)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own recordings: ana with neutral and other clips, bob with numbered ones."""
    pause = np.zeros(4000, np.float32)

    def write(path: str, seed: int, f0_hz: float, seconds: float = 3.0) -> None:
        target = tmp_path / "own" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, np.concatenate([pause, synthesise(seconds, seed, f0_hz), pause]), 16000)

    for number in (1, 2, 3):
        write(f"ana/neutral-{number}.wav", number, 120.0)
        write(f"bob/{number}.wav", 10 + number, 210.0)
    write("ana/angry.wav", 4, 120.0)
    write("bob/4.wav", 14, 210.0)
    (tmp_path / "own" / "ana" / "notes.txt").write_text("no audio")
    return tmp_path / "own"


def demo(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit status and JSON answer of the demo."""
    status = main(["demo", "--json", *map(str, words)])
    return status, json.loads(capsys.readouterr().out)


def test_every_voice_has_every_emotion_in_clips_of_three_to_six_seconds() -> None:
    clips = find_clips(CLIPS)
    assert {(clip.speaker, clip.emotion) for clip in clips} == {
        (voice, emotion) for voice in ("awb", "kal", "rms", "slt") for emotion in EMOTIONS
    }
    for clip in clips:
        waveform, rate = soundfile.read(clip.path)
        assert rate == 16000 and waveform.ndim == 1
        assert 3.0 <= len(waveform) / rate <= 6.0, clip.path
        assert np.abs(waveform).max() < 0.99, clip.path


def test_the_clips_take_less_than_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in CLIPS.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.skipif(not BASE.is_file(), reason="this checkout holds no models/base.onnx")
@pytest.mark.parametrize("voice", ["awb", "kal", "rms", "slt"])
def test_the_shipped_model_knows_each_voice_in_every_emotion(capsys: pytest.CaptureFixture[str], voice: str) -> None:
    status, report = demo(capsys, "--voice", voice)
    wrong = [(trial["file"], trial["score"]) for trial in report["trials"] if not trial["right"]]
    assert (status, wrong) == (0, [])
    assert report["model"] == "base"
    assert report["synthetic"] is True
    assert len(report["trials"]) == 28
    assert sum(trial["is_target"] for trial in report["trials"]) == 4


def test_own_recordings_are_enrolled_and_verified(capsys: pytest.CaptureFixture[str], folder: Path, model: str) -> None:
    status, report = demo(capsys, "--clips", folder, "--model", model)
    assert status == 0
    assert report["synthetic"] is False
    assert report["enrolled"]["speaker"] == "ana"
    assert report["enrolled"]["clips"] == 3
    assert [(trial["file"], trial["is_target"]) for trial in report["trials"]] == [
        ("ana/angry.wav", True),
        ("bob/1.wav", False),
        ("bob/2.wav", False),
        ("bob/3.wav", False),
        ("bob/4.wav", False),
    ]


def test_without_neutral_clips_the_first_three_are_enrolled(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str
) -> None:
    status, report = demo(capsys, "--clips", folder, "--model", model, "--voice", "bob")
    assert status == 0
    assert report["enrolled"]["clips"] == 3
    assert report["trials"][0]["file"] == "bob/4.wav"


def test_a_wrong_decision_is_shown_and_makes_the_status_1(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str
) -> None:
    (folder / "bob" / "4.wav").rename(folder / "ana" / "excited.wav")  # bob's voice under ana's name
    status, report = demo(capsys, "--clips", folder, "--model", model)
    assert status == 1
    assert report["wrong"] == 1
    assert main(["demo", "--clips", str(folder), "--model", model]) == 1
    assert "wrong" in capsys.readouterr().out


def test_a_clip_that_cannot_be_judged_makes_the_status_2(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str
) -> None:
    soundfile.write(folder / "bob" / "short.wav", synthesise(0.3, 0), 16000)
    status, report = demo(capsys, "--clips", folder, "--model", model)
    assert status == 2
    assert (report["wrong"], report["undecided"]) == (0, 1)


def test_the_table_names_the_model_the_scores_and_the_times(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str
) -> None:
    assert main(["demo", "--clips", str(folder), "--model", model]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for expected in ("model tiny", "fingerprint", "angry", "ACCEPT", "REJECT", "LLR", "ms", "1 in 100"):
        assert expected in out
    assert "synthetic" not in out


def test_synthetic_clips_are_said_to_be_synthetic(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert main(["demo", "--model", model]) in (0, 1, 2)  # the tiny model knows nothing of these voices
    assert "synthetic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: [path.unlink() for path in folder.rglob("*.wav")], "no audio files"),
        (lambda folder: [path.unlink() for path in folder.glob("ana/angry*")], "none left to verify"),
        (lambda folder: (folder / "bob" / "1.wav").write_text("no sound"), "holds text"),
    ],
    ids=["no audio", "all enrolled", "broken file"],
)
def test_an_unusable_folder_is_an_error_with_its_cure(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str, spoil: Callable[[Path], object], expected: str
) -> None:
    spoil(folder)
    status, report = demo(capsys, "--clips", folder, "--model", model)
    assert status == 3
    assert expected in report["error"]["message"]


def test_an_unknown_voice_is_an_error_that_lists_the_known(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str
) -> None:
    status, report = demo(capsys, "--clips", folder, "--model", model, "--voice", "eve")
    assert status == 3
    assert "['ana', 'bob']" in report["error"]["message"]


def test_a_missing_folder_is_an_error() -> None:
    with pytest.raises(AudioError, match="expected a folder"):
        find_clips(Path("no such folder"))
