"""The README keeps its word: its Python runs as printed, and its commands exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_demo import BASE, CLIPS

from emoinv_edge.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_screen_installs_runs_and_tests() -> None:
    lines = [line.strip() for line in README.splitlines()[:30]]
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/emoinv demo" in lines
    assert '.venv/bin/pip install -e ".[test]" && .venv/bin/pytest' in lines


@pytest.mark.skipif(not BASE.is_file(), reason="this checkout holds no models/base.onnx")
def test_the_python_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example, *_) = blocks("python")
    recordings = re.findall(r'"([\w-]+\.wav)"', example)
    assert len(recordings) == 4
    for name, clip in zip(recordings, ("neutral-1", "excited-1", "subdued-1", "tired-1"), strict=True):
        shutil.copy(CLIPS / "awb" / f"{clip}.ogg", tmp_path / name)  # libsndfile goes by the content
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    exec(compile(example, "README.md", "exec"), {})
    assert "ACCEPT" in capsys.readouterr().out


def test_every_command_of_the_readme_is_one_that_exists() -> None:
    parser = build_parser()
    (subparsers,) = (action for action in parser._actions if hasattr(action, "choices") and action.choices)
    known = set(subparsers.choices)
    used = set(re.findall(r"^(?:\$ )?emoinv ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert used <= known
    assert used == known, f"not in the README: {sorted(known - used)}"
    assert len(known) == len(COMMANDS)


def test_links_into_the_repository_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
