"""The export: float graph equals torch, the whole chain on a tiny encoder, and every gate that stops it."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.golden import GoldenResult, run_golden
from emoinv_edge.model_file import check_digest
from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec
from export import gates
from export.__main__ import main
from export.chain import Calibrating, Options, export_model, recalibrate, write_model
from export.gates import Gate, GateFailed, compare_eer, compare_embeddings, compare_with_torch, file_size
from export.graph import encoder_graph
from export.quantise import Scheme
from export.speech import Portion, alter, take_portion
from tests.builders import synthesise, write_emotional_corpus
from train.calibration import trials
from train.model import EncoderShape, ResidualEncoder, save_checkpoint
from train.prepare import write_set

SPEC = EncoderSpec(name="tiny", embedding_dim=16)
SHAPE = EncoderShape(blocks=(1, 1), widths=(8, 16), strides=((2, 2), (2, 2)), embedding_dim=16)
# Loose where a random network of a hundred kilobytes shows nothing: its speed and its EER.
QUICK = Options(fit_clips=6, held_clips=4, eer_clips=0, speed_rounds=3)


@pytest.fixture(scope="module")
def model() -> ResidualEncoder:
    torch.manual_seed(5)
    return ResidualEncoder(SHAPE).eval()


@pytest.fixture(scope="module")
def checkpoint(model: ResidualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    corpora = [{"name": "synthetic", "licence": "CC0"}]
    save_checkpoint(path, model, SPEC, step=7, provenance={"corpora": corpora})
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of eight synthetic speakers, two clips of 1.2 s each."""
    folder = tmp_path_factory.mktemp("sets") / "synthetic"
    with write_set(folder) as add:
        for speaker in range(8):
            for take, emotion in enumerate(("neutral", "happy")):
                samples = np.rint(synthesise(1.2, 10 * speaker + take, 90.0 + 20.0 * speaker) * 32767).astype(np.int16)
                add(("synthetic", f"s{speaker}", "", emotion, ""), samples, f"{speaker}-{take}")
    return folder


@pytest.fixture
def easy_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network is all overhead: its int8 is not faster."""
    monkeypatch.setattr(gates, "SPEED_UP", 0.0)


def test_the_float_graph_equals_torch_at_five_lengths(model: ResidualEncoder) -> None:
    gate = compare_with_torch(model, SPEC, encoder_graph(model, SPEC))
    assert gate.passed and len(gate.figures["by_frames"]) == 5
    assert gate.figures["max_difference"] <= 1e-4


def test_a_graph_of_other_weights_does_not_equal_torch(model: ResidualEncoder) -> None:
    torch.manual_seed(6)
    assert not compare_with_torch(model, SPEC, encoder_graph(ResidualEncoder(SHAPE), SPEC)).passed


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 101])
def test_the_float_graph_takes_awkward_lengths_and_batches(frames: int, model: ResidualEncoder) -> None:
    session = open_session(encoder_graph(model, SPEC).SerializeToString())
    features = np.random.default_rng(frames).standard_normal((3, frames, 80)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(features)).numpy()
    got = session.run(None, {"features": features})[0]
    assert got.shape == (3, 16) and np.isfinite(got).all()
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize(
    "shape",
    [
        EncoderShape(blocks=(2,), widths=(8,), strides=((1, 1),), embedding_dim=16),
        EncoderShape(blocks=(1, 2), widths=(8, 8), strides=((1, 1), (2, 1)), embedding_dim=16),
        EncoderShape(
            blocks=(1, 1), widths=(8, 12), strides=((1, 2), (2, 2)), stem_stride=(2, 2), embedding_dim=16
        ),
    ],
)  # fmt: skip
def test_other_shapes_are_written_right(shape: EncoderShape) -> None:
    torch.manual_seed(0)
    model = ResidualEncoder(shape).eval()
    assert compare_with_torch(model, SPEC, encoder_graph(model, SPEC)).passed


@pytest.fixture(scope="module")
def exported(checkpoint: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file without a calibration, to be read only."""
    out = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "SPEED_UP", 0.0)
        export_model(checkpoint, out, [prepared], QUICK, report=lambda line: None)
    return out


@pytest.mark.usefixtures("easy_speed")
def test_the_chain_writes_one_sealed_file(checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    lines: list[str] = []
    passed = export_model(checkpoint, out, [prepared], QUICK, report=lines.append)
    encoder = Encoder(out)
    assert [gate.name for gate in passed] == [
        "float graph equals torch",
        "int8 agrees with float",
        "int8 is faster",
        "file fits",
        "golden test",
    ]
    assert sum(line.startswith("pass  ") for line in lines) == 5
    assert encoder.spec == SPEC and check_digest(out.read_bytes(), out)[1]
    provenance = encoder.metadata["emoinv.provenance"]
    assert provenance["corpora"] == [{"name": "synthetic", "licence": "CC0"}]
    assert provenance["training"] == {"step": 7} and len(provenance["parents"]["checkpoint"]) == 64
    assert provenance["gates"]["int8 agrees with float"]["mean"] > 0.99
    assert provenance["fitted_on"] == ["synthetic"]
    results = run_golden(encoder)
    assert len(results) == 3 and all(result.passed for result in results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx"]


@pytest.mark.usefixtures("easy_speed")
def test_the_chain_repeats_itself(checkpoint: Path, prepared: Path, exported: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    export_model(checkpoint, again, [prepared], QUICK, report=lambda line: None)
    encoders = [Encoder(exported), Encoder(again)]
    features = np.random.default_rng(0).standard_normal((90, 80)).astype(np.float32)
    assert np.array_equal(*(encoder.embed_features(features).vector for encoder in encoders))


@pytest.mark.usefixtures("easy_speed")
def test_the_waveform_flavour_agrees_with_the_other(
    checkpoint: Path,
    prepared: Path,
    exported: Path,
    tmp_path: Path,
) -> None:
    options = dataclasses.replace(QUICK, flavour="waveform")
    export_model(checkpoint, tmp_path / "waveform.onnx", [prepared], options, report=lambda line: None)
    encoders = [Encoder(exported), Encoder(tmp_path / "waveform.onnx")]
    assert all(result.passed for result in run_golden(encoders[1]))
    waveform = synthesise(2.0, 77)
    one, two = (encoder.embed(waveform, 16000) for encoder in encoders)
    assert 1.0 - float(one @ two) < 1e-3


@pytest.mark.usefixtures("easy_speed")
@pytest.mark.parametrize(
    ("constant", "value", "name"),
    [
        ("PARITY", -1.0, "float graph equals torch"),
        ("MEAN_COSINE", 1.1, "int8 agrees with float"),
        ("MIN_COSINE", 1.1, "int8 agrees with float"),
        ("SPEED_UP", 1e6, "int8 is faster"),
        ("SIZE_MB", {"base": 1e-3}, "file fits"),
    ],
)
def test_a_gate_that_fails_stops_the_export_and_writes_nothing(
    constant: str, value: object, name: str, checkpoint: Path, prepared: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gates, constant, value)
    with pytest.raises(GateFailed, match="nothing was written") as stopped:
        export_model(checkpoint, tmp_path / "x.onnx", [prepared], QUICK, report=lambda line: None)
    assert stopped.value.gate.name == name
    assert os.listdir(tmp_path) == []


def test_the_command_reports_each_gate_and_its_exit_status(
    checkpoint: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "small.onnx"
    arguments = [
        "make",
        str(checkpoint),
        "-o",
        str(out),
        "--speech",
        str(prepared),
        "--fit-clips",
        "4",
        "--eer-clips",
        "0",
    ]
    monkeypatch.setattr(gates, "SPEED_UP", 1e6)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "pass  float graph equals torch" in printed.out and "FAIL  int8 is faster" in printed.out
    assert "export stopped" in printed.err and not out.exists()
    monkeypatch.setattr(gates, "SPEED_UP", 0.0)
    assert main([*arguments, "--name", "small", "--correction", "bias"]) == 0
    encoder = Encoder(out)
    assert encoder.spec.name == "small"
    assert encoder.metadata["emoinv.provenance"]["scheme"]["correction"] == "bias"


@pytest.fixture(scope="module")
def two_corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two prepared sets of eight synthetic speakers, each with six neutral clips and three with another emotion."""

    def voice(number: int, speaker: int, take: int, emotional: bool) -> NDArray[np.float32]:
        pitch = (90.0 + 20.0 * speaker + 5 * number) * (1.2 if emotional else 1.0)
        return synthesise(1.4, 1000 * number + 10 * speaker + take, pitch)

    folder = tmp_path_factory.mktemp("calibration")
    return [
        write_emotional_corpus(folder / name, name, 8, "male", functools.partial(voice, number))
        for number, name in enumerate(("ased", "nemo"))
    ]


def test_a_file_can_be_calibrated_anew_and_nothing_else_changes(
    exported: Path,
    two_corpora: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trials, "LEGIBLE_EER", 1.0)  # a random network confuses these voices
    old, new = exported, tmp_path / "new.onnx"
    before = old.read_bytes()
    assert main(["calibrate", str(old), *map(str, two_corpora), "-o", str(new)]) == 0
    assert "calibration of scores on ased, nemo" in capsys.readouterr().out
    first, second = Encoder(old), Encoder(new)
    assert old.read_bytes() == before
    assert first.calibration is None and second.calibration is not None
    assert "ased (8 speakers" in second.calibration.source
    assert second.fingerprint == first.fingerprint and first.file_sha256 != second.file_sha256
    assert second.spec == first.spec
    features = np.random.default_rng(0).standard_normal((50, 80)).astype(np.float32)
    assert np.array_equal(first.embed_features(features).vector, second.embed_features(features).vector)
    assert all(result.passed for result in run_golden(second))
    was, now = (encoder.metadata["emoinv.provenance"] for encoder in (first, second))
    assert now["parents"] == was["parents"] | {"recalibrated_file": first.file_sha256}
    assert {key: now[key] for key in ("gates", "corpora", "scheme", "sealed")} == {
        key: was[key] for key in ("gates", "corpora", "scheme", "sealed")
    }
    recalibrate(new, new, Calibrating(two_corpora), report=lambda line: None)
    assert Encoder(new).calibration == second.calibration and Encoder(new).fingerprint == first.fingerprint
    monkeypatch.setattr(gates, "file_size", lambda name, size: Gate("file fits", False, f"{size} bytes", {}))
    again = new.read_bytes()
    with pytest.raises(GateFailed, match="file fits"):
        recalibrate(new, new, Calibrating(two_corpora), report=lambda line: None)
    assert new.read_bytes() == again


@pytest.mark.usefixtures("easy_speed")
def test_the_terms_of_a_calibration_can_be_named(
    checkpoint: Path, prepared: Path, two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LEGIBLE_EER", 1.0)
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    calibrating = Calibrating(two_corpora, terms=["envelope"])
    export_model(checkpoint, old, [prepared], QUICK, calibrating, report=lambda line: None)
    calibration = Encoder(old).calibration
    assert calibration is not None and [term.name for term in calibration.terms] == ["cosine", "envelope"]
    assert main(["calibrate", str(old), *map(str, two_corpora), "-o", str(new), "--terms", "norm", "test_seconds"]) == 0
    calibration = Encoder(new).calibration
    assert calibration is not None
    assert [term.name for term in calibration.terms] == ["cosine", "norm_above", "norm_below", "test_seconds"]
    assert Encoder(new).metadata["emoinv.provenance"]["calibration_terms"] == "named by the user"


@pytest.mark.usefixtures("easy_speed")
def test_the_emotion_axis_travels_in_the_file(
    checkpoint: Path, prepared: Path, two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LEGIBLE_EER", 1.0)
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    calibrating = Calibrating(two_corpora, terms=["norm"])
    export_model(checkpoint, old, [prepared], QUICK, calibrating, report=lambda line: None)
    common = ["calibrate", str(old), *map(str, two_corpora), "-o", str(new), "--terms", "norm"]
    assert main([*common, "--emotion-axis", "ased"]) == 0
    before, after = Encoder(old), Encoder(new)
    assert before.calibration is not None and before.calibration.emotion_axis is None
    assert after.calibration is not None and after.calibration.emotion_axis is not None
    assert after.calibration.emotion_axis.dim == after.spec.embedding_dim
    assert after.metadata["emoinv.provenance"]["calibration_axis"] == ["ased"]
    assert after.fingerprint == before.fingerprint
    with pytest.raises(ValueError, match="tess"):
        main([*common, "--emotion-axis", "tess"])


@pytest.mark.usefixtures("easy_speed")
def test_recorded_noise_can_be_given_to_the_calibration(
    exported: Path, two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LEGIBLE_EER", 1.0)
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "hum.wav", 0.1 * np.sin(np.arange(48000) / 20), 16000)
    found = []
    for given in ([], ["--noise", str(folder)]):
        new = tmp_path / f"new{len(given)}.onnx"
        arguments = ["calibrate", str(exported), *map(str, two_corpora), "-o", str(new), "--terms", "norm", *given]
        assert main(arguments) == 0
        found.append(Encoder(new).calibration)
    assert found[0] is not None and found[1] is not None
    assert found[0].terms != found[1].terms


def test_a_file_of_another_program_is_not_calibrated(
    model: ResidualEncoder, two_corpora: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "bare.onnx"
    write_model(path, encoder_graph(model, SPEC), {"emoinv.spec": SPEC.to_json()})
    with pytest.raises(ValueError, match=r"lacks emoinv\.golden, emoinv\.provenance"):
        recalibrate(path, tmp_path / "out.onnx", Calibrating(two_corpora))
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.usefixtures("easy_speed")
def test_a_file_whose_golden_test_fails_here_is_not_calibrated(
    exported: Path, two_corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.onnx"
    monkeypatch.setattr(gates, "run_golden", lambda encoder: [GoldenResult(0.5, 0.995)])
    with pytest.raises(GateFailed, match="golden test"):
        recalibrate(exported, new, Calibrating(two_corpora))
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "best.pt"], "required: --speech"),
        (["calibrate", "old.onnx"], "required: SET"),
        (["calibrate", "old.onnx", "a", "b", "--speech", "c"], "unrecognized arguments: --speech"),
        (["make", "best.pt", "--speech", "a", "--terms", "norm"], "expected --calibrate"),
        (["make", "best.pt", "--speech", "a", "--noise", "n"], "expected --calibrate"),
        (["make", "best.pt", "--speech", "a", "--emotion-axis", "n"], "expected --calibrate"),
        (["calibrate", "old.onnx", "a", "b", "--terms", "norm", "norm"], "expected --terms without repeats"),
        (["calibrate", "old.onnx", "a", "b", "--terms", "norm", "emotion_shift"], "expected --emotion-axis"),
        (["calibrate", "old.onnx", "a", "b", "--terms", "anger"], "'envelope'"),
    ],
)
def test_a_command_names_what_it_lacks(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-o", str(tmp_path / "out.onnx")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_study_compares_schemes_and_layers(checkpoint: Path, two_corpora: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study.md"
    counts = ["--fit-clips", "4", "--held-clips", "4", "--eer-clips", "8", "--layer-clips", "2"]
    assert main(["study", str(checkpoint), "--speech", *map(str, two_corpora), "-o", str(out), *counts]) == 0
    text = out.read_text()
    assert "| float | 1.0000 |" in text and "| equalised 0.5, bias corrected | 0.99" in text
    assert "| stage2.block1.conv2 |" in text


def test_the_eer_gate_finds_a_loss() -> None:
    rng = np.random.default_rng(0)
    voices = np.repeat(rng.standard_normal((20, 8)), 5, axis=0)
    speakers = tuple(f"s{i // 5}" for i in range(100))
    portion = Portion(np.empty((100, 1, 1), np.float32), ("a",) * 100, speakers, ("",) * 100)

    def noisy(level: float) -> NDArray[np.float32]:
        vectors = voices + level * np.random.default_rng(1).standard_normal(voices.shape)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    assert compare_eer(portion, noisy(0.6), noisy(0.6)).passed
    worse = compare_eer(portion, noisy(0.6), noisy(1.0))
    assert not worse.passed and worse.figures["worst_loss"] > 0.2
    assert compare_eer(portion, noisy(1.0), noisy(0.6)).passed


def test_the_cosine_gate_looks_at_the_mean_and_at_the_worst() -> None:
    exact = np.eye(4, dtype=np.float32)[[0] * 100]
    ours = exact.copy()
    assert compare_embeddings(exact, ours).passed
    ours[3] = [0.9, np.sqrt(1 - 0.81), 0, 0]
    gate = compare_embeddings(exact, ours)
    assert not gate.passed and gate.figures["mean"] > 0.99 and gate.figures["min"] == pytest.approx(0.9)


@pytest.mark.parametrize(("name", "size", "fits"), [("base", 7_900_000, True), ("base", 8_100_000, False),
                                                    ("small", 3_100_000, False), ("own", 7_000_000, True)])  # fmt: skip
def test_the_size_gate_knows_the_tiers(name: str, size: int, fits: bool) -> None:
    assert file_size(name, size).passed is fits


def test_a_failed_gate_can_be_written_down_when_asked(checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, require=False, speed_rounds=1)
    out = tmp_path / "kept.onnx"
    gates_ = export_model(checkpoint, out, [prepared], options, report=lambda line: None)
    assert isinstance(gates_[0], Gate)
    written = Encoder(out).metadata["emoinv.provenance"]["gates"]
    assert {name: gate["passed"] for name, gate in written.items()} == {
        gate.name: gate.passed for gate in gates_ if gate.name != "golden test"
    }


def test_the_two_halves_share_no_speaker(prepared: Path) -> None:
    fit, held = (take_portion([prepared], SPEC, 6, held_back=half) for half in (False, True))
    assert not set(fit.speaker) & set(held.speaker)
    assert fit.features.shape[1:] == (298, 80) and fit.features.dtype == np.float32
    assert np.abs(fit.features.mean(axis=1)).max() < 1e-4


def test_drawn_clips_depend_on_the_seed_alone(prepared: Path) -> None:
    first, again, other = (take_portion([prepared], SPEC, 6, held_back=False, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.features, again.features)
    assert not np.array_equal(first.features, other.features)


def test_a_set_without_clips_enough_of_any_speaker_is_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="no speaker with 6 clips"):
        take_portion([prepared], SPEC, 6, held_back=True, per_speaker=6)


def test_speech_without_a_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one prepared set.*python -m train prepare"):
        take_portion([], SPEC, 6, held_back=False)


def test_altered_speech_is_a_copy_within_bounds() -> None:
    waveform = synthesise(1.0, 1)
    untouched = waveform.copy()
    kinds = [alter(waveform, np.random.default_rng(seed)) for seed in range(40)]
    assert np.array_equal(waveform, untouched)
    assert all(np.isfinite(w).all() and w.dtype == np.float32 and w.shape == waveform.shape for w in kinds)
    assert any(np.abs(w).max() < 0.2 for w in kinds) and any((np.abs(w) == 1.0).sum() > 10 for w in kinds)


def test_unknown_metadata_are_not_written(model: ResidualEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"emoinv\.other"):
        write_model(tmp_path / "x.onnx", encoder_graph(model, SPEC), {"emoinv.other": "1"})
    assert os.listdir(tmp_path) == []


def test_the_same_model_gives_the_same_graph(model: ResidualEncoder) -> None:
    assert encoder_graph(model, SPEC).SerializeToString() == encoder_graph(model, SPEC).SerializeToString()
    assert Scheme().describe().startswith("correction none")
