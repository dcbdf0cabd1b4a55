"""`emoinv doctor`: what it finds, names and cures, and that it survives what it looks at."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from emoinv_edge.cli import doctor
from tests.builders import in_file
from tests.shell import CALIBRATION, Shell


def test_the_doctor_names_versions_models_and_the_store(with_ana: Shell) -> None:
    found = with_ana.findings()
    for name in ("emoinv-edge", "Python", "numpy", "onnxruntime", "CPU", "--model", "store"):
        assert found[name]["status"] == "ok", found[name]
    assert "3000 impostor speakers" in found["--model"]["value"]
    assert str(with_ana.store) in found["store"]["value"]


def test_the_doctor_notes_where_the_usual_rate_is_not_supported(
    emoinv: Shell, make_encoder: Callable[..., Path]
) -> None:
    emoinv.model = make_encoder(metadata=in_file(dataclasses.replace(CALIBRATION, num_impostor_speakers=100)))
    found = emoinv.findings()["--model"]
    assert found["status"] == "note"
    assert "--far 1/33," in found["cure"]


def test_the_doctor_cures_a_missing_portaudio(emoinv: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(fake))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    found = emoinv.findings()["PortAudio"]
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
    found = emoinv.findings()
    assert found["microphone 1"]["value"] == "Array (44100 Hz, default)"
    assert "microphone 0" not in found


def test_the_doctor_finds_a_package_that_does_not_import(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)  # makes `import soxr` an ImportError
    found = emoinv.findings()["soxr"]
    assert found["status"] == "fault"
    assert "pip install soxr" in found["cure"]


def test_the_doctor_refuses_the_onnxruntime_that_crashes(emoinv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda distribution: "1.21.0")
    assert emoinv.findings()["onnxruntime"]["status"] == "fault"


def test_the_doctor_finds_a_damaged_model_and_a_foreign_store(emoinv: Shell, tmp_path: Path) -> None:
    emoinv.model = tmp_path / "damaged.onnx"
    emoinv.model.write_bytes(b"not a model")
    emoinv.store.write_bytes(b"not a store" * 1000)
    found = emoinv.findings()
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
