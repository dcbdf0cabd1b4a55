"""The emoinv command as the tests run it: in this process, with a model, a store and a microphone of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from emoinv_edge.calibration import FarTable, Term
from emoinv_edge.cli import main
from tests.builders import calibration

# Fits the tiny encoders: cosines of about 0.9 within a voice, at most 0.5 between two.
CALIBRATION = calibration(
    bias=-14.0,
    terms=(Term("cosine", 20.0, -1.0, 1.0),),
    far_tables=tuple(FarTable(count, (0.5, 0.01, 0.001), (-3.0, 0.0, 1.0)) for count in (1, 100)),
    num_impostor_speakers=3000,
)
ANA_HZ, BOB_HZ = 120.0, 210.0


class Shell:
    """Runs emoinv with one model and, where the command has one, one store, and keeps what it printed."""

    def __init__(self, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.folder, self.store = model, folder, folder / "profiles.db"
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, command: str, *arguments: str | Path, model: bool = True) -> int:
        words = [command, *map(str, arguments)]
        words += ["--model", str(self.model)] if model else []
        words += ["--store", str(self.store)] if command not in ("compare", "embed") else []
        status = main(words)
        self.out, self.err = self._capsys.readouterr()
        return status

    def answer(self) -> Any:
        """The JSON value that was printed, alone on standard output."""
        return json.loads(self.out)

    def answers(self) -> list[Any]:
        """The JSON objects that were printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def findings(self) -> dict[str, dict[str, str]]:
        """What the doctor finds, by name."""
        self("doctor", "--json")
        return {finding["name"]: finding for finding in self.answer()["findings"]}


class FakeMicrophone:
    """Stands in for `Microphone`: yields and fails as its items ask."""

    items: ClassVar[list[Any]] = []

    def __init__(self, sample_rate: int, device: int | str | None = None, retry: bool = False) -> None:
        assert sample_rate == 16000
        self.name = "Fake USB"

    def __enter__(self) -> FakeMicrophone:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            if isinstance(item, BaseException):
                raise item
            yield item
