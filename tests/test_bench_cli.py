"""emoinv bench: what it measures, that it checks what it measures, and that its JSON is complete."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emoinv_edge.calibration import Calibration
from emoinv_edge.cli import bench, main
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError
from tests.builders import quality


@pytest.fixture(scope="module")
def result(tiny_encoder_path: Path) -> dict[str, Any]:
    """The JSON of a short run with the tiny encoder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["bench", "--model", str(tiny_encoder_path), "--seconds", "0.2", "--json"])
    assert status == 0
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


def test_json_holds_every_stage_with_its_share_of_a_core(result: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in result["rows"]}
    lengths = [f"embed {seconds:g} s" for seconds in (1, 2, 3, 5, 10)]
    expected = {
        "features", "speech detection", "quality and prosody", *lengths, "verify 3 s", "enrol 3 x 3 s",
        "stream, 30 ms chunks", "score 1 profile", "score 1,000 profiles",
    }  # fmt: skip
    assert set(rows) == expected
    for row in rows.values():
        assert row["rounds"] >= 1
        assert row["ms"] > 0.0 and row["cpu_ms"] > 0.0
        if row["audio_s"] is None:
            assert row["rtf"] is None and row["percent_of_one_core"] is None
        else:
            assert row["rtf"] == pytest.approx(row["cpu_ms"] / 1000.0 / row["audio_s"], rel=0.01, abs=1e-6)
            assert row["percent_of_one_core"] == pytest.approx(100.0 * row["rtf"], rel=0.01, abs=1e-3)


def test_json_names_the_processor_its_flags_and_the_versions(result: dict[str, Any], tiny_encoder: Encoder) -> None:
    assert result["machine"]["cpu"] and result["machine"]["cores"] >= 1
    assert {"python", "numpy", "onnxruntime"} <= set(result["machine"]["versions"])
    assert result["model"]["fingerprint"] == tiny_encoder.fingerprint
    assert result["model"]["mb"] == pytest.approx(tiny_encoder.path.stat().st_size / 1e6, abs=1e-3)
    assert result["threads"] == 1


def test_start_memory_and_size_are_measured(result: dict[str, Any]) -> None:
    assert result["cold_start_ms"] > result["load_ms"] > 0.0
    if Path("/proc/self/status").is_file():
        assert 10.0 < result["resident_mb"] < 10_000.0
    assert 0.1 < result["package_mb"] < 100.0


def test_nothing_in_the_json_names_the_machine(result: dict[str, Any]) -> None:
    text = json.dumps(result)
    assert "/" + getpass.getuser() not in text
    assert platform.node() not in text or platform.node() in ("", "localhost")


def test_the_table_shows_the_same_stages(tiny_encoder_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(tiny_encoder_path), "--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    for text in ("CPU ms", "% of a core", "embed 3 s", "verify 3 s", "score 1,000 profiles", "cold start"):
        assert text in out


def test_a_missing_model_is_an_error_with_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(tmp_path / "none.onnx"), "--seconds", "0.1"]) == 3
    assert "no such model file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_cannot_be_spent_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--seconds", text]) == 3
    assert "expected seconds" in capsys.readouterr().err


def test_a_model_that_gives_no_embedding_is_no_benchmark(
    make_encoder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", str(make_encoder(gain=0.0)), "--seconds", "0.1"]) == 3
    assert "norm 0" in capsys.readouterr().err


def test_a_wrong_result_stops_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    test = np.eye(32, dtype=np.float32)[0]
    _, _, score = bench.score_stage(3, test, quality(), bench.stand_in_calibration(len(test)))
    score()
    monkeypatch.setattr(Calibration, "llr", lambda self, evidence: -evidence["cosine"])
    with pytest.raises(EmoinvError, match="expected profile 2"):
        score()


def test_a_measurement_makes_one_round_even_without_time() -> None:
    calls: list[int] = []
    row = bench.measure("nothing", 1.0, lambda: calls.append(1), 0.0)
    assert row["rounds"] == 1 and len(calls) == 2
