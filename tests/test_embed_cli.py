"""`emoinv embed`: embeddings of many recordings in one file, for a back end of one's own."""

from __future__ import annotations

import csv
import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from emoinv_edge import Encoder
from emoinv_edge.cli import main
from emoinv_edge.utterance import hear
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, synthesise


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("embed"))


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    for number, f0_hz in enumerate((ANA_HZ, BOB_HZ, 150.0)):
        soundfile.write(tmp_path / f"{number}.wav", synthesise(2.0, number, f0_hz), RATE)
    return [tmp_path / f"{number}.wav" for number in range(3)]


def test_an_archive_holds_the_embeddings_that_verification_would_use(
    encoder: Encoder, clips: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    assert main(["embed", *map(str, clips), "-o", str(out), "--model", str(encoder.path)]) == 0
    with np.load(out, allow_pickle=False) as archive:
        assert archive["files"].tolist() == [str(clip) for clip in clips]
        assert archive["fingerprint"] == encoder.fingerprint
        for vector, clip in zip(archive["embeddings"], clips, strict=True):
            expected = hear(encoder, soundfile.read(clip, dtype="float32")[0], RATE).embedding
            assert expected is not None and np.array_equal(vector, expected.vector)
    if sys.platform != "win32":
        assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_table_holds_the_same_numbers(encoder: Encoder, clips: list[Path], tmp_path: Path) -> None:
    for name in ("out.npz", "out.csv"):
        assert main(["embed", *map(str, clips), "-o", str(tmp_path / name), "--model", str(encoder.path)]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = np.array([[row[f"e{k}"] for k in range(encoder.spec.embedding_dim)] for row in rows], np.float32)
    with np.load(tmp_path / "out.npz") as archive:
        assert np.array_equal(values, archive["embeddings"])


@pytest.mark.slow
def test_several_processes_give_the_bits_of_one_in_the_same_order(
    encoder: Encoder, clips: list[Path], tmp_path: Path
) -> None:
    for workers in ("1", "2"):
        words = ["embed", *map(str, clips), "--workers", workers, "-o", str(tmp_path / f"{workers}.npz")]
        assert main([*words, "--model", str(encoder.path)]) == 0
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_bad_recordings_are_left_out_and_named(
    encoder: Encoder, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    files = [str(tmp_path / "none.wav"), *map(str, clips)]
    assert main(["embed", *files, "-o", str(out), "--json", "--model", str(encoder.path)]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["embeddings"] == 3
    assert [left["file"] for left in answer["left_out"]] == [files[0]]


def test_nothing_is_written_where_nothing_could_be_used(encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert main(["embed", str(tmp_path / "none.wav"), "-o", str(out), "--model", str(encoder.path)]) == 3
    assert not out.exists()


def test_each_channel_has_a_row(encoder: Encoder, tmp_path: Path) -> None:
    call = tmp_path / "call.wav"
    soundfile.write(call, np.stack([synthesise(2.0, 1, ANA_HZ), synthesise(2.0, 1, BOB_HZ)], axis=1), RATE)
    out = str(tmp_path / "out.npz")
    assert main(["embed", str(call), "--channel", "each", "-o", out, "--model", str(encoder.path)]) == 0
    with np.load(out) as archive:
        assert archive["channels"].tolist() == [1, 2]
        assert float(archive["embeddings"][0] @ archive["embeddings"][1]) < 0.9


@pytest.mark.parametrize(
    "words",
    [["-o", "out.txt"], ["-o", "out.npz", "--workers", "0"], ["-o", "out.npz", "--workers", "many"], []],
)
def test_wrong_usage_exits_with_3(words: list[str]) -> None:
    assert main(["embed", "a.wav", *words]) == 3


def test_standard_input_is_not_shared_between_processes(encoder: Encoder, tmp_path: Path) -> None:
    words = ["embed", "-", "-o", str(tmp_path / "out.npz"), "--workers", "2"]
    assert main([*words, "--model", str(encoder.path)]) == 3
