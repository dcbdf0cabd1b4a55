"""``emoinv model``: the card, and the proof that this device computes what the exporting machine did."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emoinv_edge.cli import main
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.golden import make_golden, run_golden
from export.chain import write_model
from tests.builders import calibration, emotion_axis, in_file, synthesise, unit_vectors

PROVENANCE: dict[str, Any] = {
    "format": 1,
    "sealed": True,
    "version": "0.9.0",
    "created": "2026-01-02T03:04:05+00:00",
    "corpora": [{"name": "a corpus", "licence": "CC BY 4.0"}],
    "training": {"teachers": [{"name": "a public encoder", "licence": "Apache-2.0"}]},
    "parents": {"checkpoint": "ab" * 32},
    "scheme": {"activations": "uint8", "weight_bits": 8, "in_float": ["stem"]},
    "gates": {
        "file fits": {"passed": True, "bytes": 1234567},
        "EER kept": {"passed": False, "eer_percent": {"a corpus": {"fp32": 1.25, "int8": 2.5}}},
    },
}


@pytest.fixture(scope="module")
def write(tiny_encoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    graph = onnx.load(tiny_encoder_path)
    spec = next(entry.value for entry in graph.metadata_props if entry.key == "emoinv.spec")
    folder = tmp_path_factory.mktemp("written")
    count = iter(range(1000))

    def write_(values: dict[str, Any]) -> Path:
        path = folder / f"{next(count)}.onnx"
        write_model(path, graph, {"emoinv.spec": spec, **values})
        return path

    return write_


@pytest.fixture(scope="module")
def golden(tiny_encoder: Encoder) -> dict[str, Any]:
    inputs = [synthesise(1.0, seed) for seed in (0, 1)]
    return make_golden(tiny_encoder, inputs, "a test machine")


@pytest.fixture(scope="module")
def whole(write: Callable[[dict[str, Any]], Path], golden: dict[str, Any]) -> Path:
    return write({"emoinv.provenance": PROVENANCE, "emoinv.golden": golden})


def test_the_card_names_source_licences_gates_and_the_golden_test(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "show", str(whole)]) == 0
    card = capsys.readouterr().out
    for expected in (
        "tiny: speaker embeddings of 32 values",
        "sha256       " + Encoder(whole).file_sha256,
        "fingerprint  " + Encoder(whole).fingerprint,
        "80 log-mels of 25 ms every 10 ms",
        "a corpus (CC BY 4.0)",
        "teacher      a public encoder (Apache-2.0)",
        "2026-01-02T03:04:05+00:00 by emoinv-edge 0.9.0",
        "checkpoint " + "ab" * 32,
        "in_float [stem]",
        "file fits: passed",
        "EER kept: FAILED (eer_percent {a corpus {fp32 1.25, int8 2.5}})",
        "calibration  none",
        "2 inputs, computed on a test machine",
    ):
        assert expected in card


def test_the_card_names_the_speech_of_the_emotion_axis(
    write: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    held = in_file(calibration(emotion_axis=emotion_axis(unit_vectors(1, 0)[0])))
    for provenance, expected in (({"calibration_axis": ["actors"]}, "actors"), ({}, "speech that the file does not")):
        assert main(["model", "show", str(write({**held, "emoinv.provenance": PROVENANCE | provenance}))]) == 0
        assert f"emotion axis fitted on {expected}" in capsys.readouterr().out


def test_the_card_of_a_bare_model_lists_what_is_missing(
    tiny_encoder_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "show", str(tiny_encoder_path)]) == 0
    assert "provenance   none" in capsys.readouterr().out


def test_the_card_as_json_holds_the_metadata(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", str(whole), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["spec"]["name"] == "tiny" and card["provenance"] == PROVENANCE
    assert card["fingerprint"] == Encoder(whole).fingerprint
    assert card["file_sha256"] == Encoder(whole).file_sha256


def test_a_whole_file_is_verified(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "verify", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12].split(":")[0] for line in lines[:3]] == ["ok    digest", "ok    spec", "ok    golden"]
    assert f"verified, sha256 {Encoder(whole).file_sha256}" in lines[3] and "NOT" not in lines[3]


def test_verification_as_json(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "verify", str(whole), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and {check["check"] for check in found["checks"]} == {"digest", "spec", "golden"}


def test_a_device_that_computes_another_voice_is_not_verified(
    write: Callable[[dict[str, Any]], Path], golden: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    drifted = copy.deepcopy(golden)
    embedding = np.frombuffer(base64.b64decode(drifted["items"][1]["embedding"]), "<f4").astype(np.float64)
    embedding += 0.05 * np.random.default_rng(0).standard_normal(len(embedding))
    embedding /= np.linalg.norm(embedding)
    drifted["items"][1]["embedding"] = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    path = write({"emoinv.provenance": PROVENANCE, "emoinv.golden": drifted})
    assert [result.passed for result in run_golden(Encoder(path))] == [True, False]
    assert main(["model", "verify", str(path)]) == 3
    printed = capsys.readouterr().out
    assert "FAIL  golden" in printed and "NOT verified" in printed


def test_a_model_that_proves_nothing_is_not_verified(
    tiny_encoder_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "verify", str(tiny_encoder_path)]) == 3
    printed = capsys.readouterr().out
    assert "FAIL  digest" in printed and "FAIL  golden: the file holds no golden test" in printed


def test_a_damaged_file_is_not_verified(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(whole.read_bytes())
    content[1000] ^= 1
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content)
    for action in ("verify", "show"):
        assert main(["model", action, str(damaged)]) == 3
        assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": None},
        {"items": [{}]},
        {"items": "abc"},
        {"cosine": "much"},
        {"kind": None},
        {"items": [{"samples": 16000, "input": "!", "embedding": ""}]},
        {"items": [{"samples": 16000, "input": "AAAA", "embedding": ""}]},
    ],
)
def test_a_golden_test_that_cannot_be_read_is_refused(
    change: dict[str, Any], write: Callable[[dict[str, Any]], Path], golden: dict[str, Any]
) -> None:
    encoder = Encoder(write({"emoinv.golden": golden | change}))
    with pytest.raises(ModelFormatError, match="golden test"):
        run_golden(encoder)


def test_a_golden_input_is_stored_in_few_bytes(golden: dict[str, Any]) -> None:
    assert len(json.dumps(golden)) < 45_000  # two seconds of them


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", str(tmp_path / "none.onnx")]) == 3
    assert "no such model file" in capsys.readouterr().err
