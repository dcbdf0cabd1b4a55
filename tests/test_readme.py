"""The first screen of the README: the two command lines that .ci/run reads out of it, and its Python, as printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "emoinv_edge" / "models" / "base.onnx"
CLIPS = ROOT / "emoinv_edge" / "demo" / "clips"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_installs_runs_and_tests() -> None:
    lines = [line.strip() for line in README.splitlines()[:36]]
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/emoinv demo" in lines
    assert '.venv/bin/pip install -e ".[test]" && .venv/bin/pytest' in lines


@pytest.mark.skipif(not BASE.is_file(), reason="this checkout holds no models/base.onnx")
def test_the_python_example_accepts_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    recordings = re.findall(r'"([\w-]+\.wav)"', example)
    assert len(recordings) == 4
    for name, clip in zip(recordings, ("neutral-1", "excited-1", "subdued-1", "tired-1"), strict=True):
        shutil.copy(CLIPS / "awb" / f"{clip}.ogg", tmp_path / name)  # libsndfile goes by the content
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_DATA_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    exec(compile(example, "README.md", "exec"), {})
    assert "ACCEPT" in capsys.readouterr().out
