"""Guards in a model file: the embedding stays bit for bit, the windows are what they say, and the file carries both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.features import mean_normalise
from emoinv_edge.session import open_session, run_outputs
from emoinv_edge.spec import EncoderSpec
from export import guards as export_guards
from export.__main__ import main
from export.chain import write_model
from export.graph import encoder_graph
from export.windows import add_windows, geometry
from tests.builders import build_encoder, calibration, in_file, synthesise
from train.model import EncoderShape, ResidualEncoder

SPEC = EncoderSpec(name="tiny", embedding_dim=16)
SHAPE = EncoderShape(blocks=(1, 1), widths=(8, 16), strides=((2, 2), (2, 2)), embedding_dim=16)


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    torch.manual_seed(5)
    return encoder_graph(ResidualEncoder(SHAPE).eval(), SPEC)


def frames(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1, count, 80)).astype(np.float32)


@pytest.mark.parametrize("count", [10, 100, 151, 152, 300, 1000])
def test_the_embedding_stays_bit_for_bit_and_the_windows_follow(graph: onnx.ModelProto, count: int) -> None:
    _, window, hop = geometry(graph)
    feeds = {"features": frames(count)}
    (plain,) = run_outputs(open_session(graph.SerializeToString()), ["embedding"], feeds)
    session = open_session(add_windows(graph).SerializeToString())
    both, windows = run_outputs(session, ["embedding", "windows"], feeds)
    assert np.array_equal(plain, both)
    stride = 4
    held = -(-count // stride)  # frames of the last activations
    assert windows.shape == (max(0, (held - window // stride) // (hop // stride)) + 1, 16)
    assert np.isfinite(windows).all()


def test_a_window_of_the_whole_is_the_whole(graph: onnx.ModelProto) -> None:
    _, window, _ = geometry(graph)
    session = open_session(add_windows(graph).SerializeToString())
    features = {"features": mean_normalise(frames(window)[0])[np.newaxis]}
    whole, windows = run_outputs(session, ["embedding", "windows"], features)
    assert len(windows) == 1
    assert np.allclose(windows, whole, rtol=1e-3, atol=1e-4)


def test_the_geometry_is_of_the_strides(graph: onnx.ModelProto) -> None:
    assert geometry(graph) == (4, 152, 48)


def test_adding_windows_twice_is_adding_them_once(graph: onnx.ModelProto) -> None:
    once = add_windows(graph)
    assert add_windows(once) == once


def test_a_graph_of_another_program_has_no_place_for_windows(tmp_path: Path) -> None:
    foreign = onnx.load(build_encoder(tmp_path / "foreign.onnx"))
    with pytest.raises(ValueError, match="expected a graph of `python -m export`"):
        add_windows(foreign)


def test_an_encoder_gives_windows_of_unit_norm(graph: onnx.ModelProto, tmp_path: Path) -> None:
    for name, made in (("with", add_windows(graph)), ("without", graph)):
        write_model(tmp_path / f"{name}.onnx", made, {"emoinv.spec": SPEC.to_json()})
    given, bare = Encoder(tmp_path / "with.onnx"), Encoder(tmp_path / "without.onnx")
    features = frames(400)[0]
    embedding = given.embed_features(features)
    assert embedding.windows is not None and len(embedding.windows) > 3
    assert np.allclose(np.linalg.norm(embedding.windows, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(embedding.vector, bare.embed_features(features).vector)
    assert bare.embed_features(features).windows is None
    long = given.embed_features(frames(4000)[0])  # embedded in parts, whose windows follow one another
    assert long.windows is not None and len(long.windows) > 60


def test_an_output_of_another_name_is_refused(graph: onnx.ModelProto, tmp_path: Path) -> None:
    other = add_windows(graph)
    other.graph.output[1].name = "frames"
    other.graph.node[-1].output[0] = "frames"
    write_model(tmp_path / "other.onnx", other, {"emoinv.spec": SPEC.to_json()})
    with pytest.raises(ModelFormatError, match="'embedding' and 'windows'"):
        Encoder(tmp_path / "other.onnx")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora of four voices, eight clips of 1.6 s each, some of them happy."""
    from train.prepare import write_set

    folders = []
    for number, corpus in enumerate(("ased", "nemo")):
        folders.append(tmp_path_factory.mktemp("sets") / corpus)
        with write_set(folders[-1]) as add:
            for speaker in range(4):
                for take in range(8):
                    hz = 100.0 + 25.0 * speaker + 7.0 * number
                    wave = synthesise(1.6, seed=100 * number + 10 * speaker + take, f0_hz=hz)
                    samples = np.rint(wave * 32767).astype(np.int16)
                    add((corpus, str(speaker), "male", "happy" if take > 4 else "neutral", ""), samples, f"{take}")
    return folders


def test_the_command_writes_guards_into_the_file_and_leaves_the_rest(
    graph: onnx.ModelProto, sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emoinv_edge.golden import make_golden
    from export.chain import golden_inputs
    from train.calibration import guard_speech

    monkeypatch.setattr(guard_speech, "MADE", 40)
    monkeypatch.setattr(guard_speech, "JOINED", 4)
    monkeypatch.setattr(export_guards, "measure_sounds", few_sounds)
    sounds = tmp_path / "sounds" / "bells"
    sounds.mkdir(parents=True)
    time = np.arange(3 * 16000) / 16000
    for number in range(4):
        soundfile.write(sounds / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (300 + 90 * number) * time), 16000)
    bare, old, new = tmp_path / "bare.onnx", tmp_path / "old.onnx", tmp_path / "new.onnx"
    write_model(bare, graph, {"emoinv.spec": SPEC.to_json()})
    held = calibration()
    values = {
        "emoinv.spec": SPEC.to_json(),
        "emoinv.calibration": held.to_json(),
        "emoinv.golden": make_golden(Encoder(bare), golden_inputs(SPEC), "test"),
        "emoinv.provenance": {"format": 1, "sealed": True, "parents": {}},
    }
    write_model(old, graph, values)
    arguments = ["guards", str(old), "-o", str(new), "--speech", *map(str, sets), "--sounds", str(sounds.parent)]
    figures = tmp_path / "figures.json"
    assert main([*arguments, "--cache", str(tmp_path / "cache"), "--figures", str(figures)]) == 0
    first, second = Encoder(old), Encoder(new)
    assert first.guards is None and second.guards is not None
    assert second.fingerprint != first.fingerprint  # the graph gives windows now
    assert second.calibration == first.calibration
    features = frames(300)[0]
    assert np.array_equal(first.embed_features(features).vector, second.embed_features(features).vector)
    assert json.loads(figures.read_text()) == second.metadata["emoinv.provenance"]["guards_figures"]
    monkeypatch.setattr(export_guards, "measure_clips", forbidden)
    again = tmp_path / "again.onnx"
    arguments[1], arguments[3] = str(new), str(again)
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0  # from what was heard
    assert Encoder(again).guards == second.guards
    assert Encoder(again).fingerprint == second.fingerprint
    assert Enroller(second).doubts == ()


def few_sounds(encoder: Encoder, folders: list[Path], progress: Callable[[str], None]) -> object:
    from train.calibration.guard_speech import measure_sounds

    return measure_sounds(encoder, folders, progress, made=40)


def forbidden(*arguments: object) -> None:
    raise AssertionError("the cache was not used")


def test_a_file_without_a_calibration_gets_no_guards(graph: onnx.ModelProto, sets: list[Path], tmp_path: Path) -> None:
    write_model(tmp_path / "bare.onnx", graph, {"emoinv.spec": SPEC.to_json()})
    with pytest.raises(ValueError, match="expected a file with a calibration"):
        export_guards.add_guards(tmp_path / "bare.onnx", tmp_path / "out.onnx", sets, [tmp_path])
    assert not (tmp_path / "out.onnx").exists()
    write_model(
        tmp_path / "half.onnx",
        graph,
        {"emoinv.spec": SPEC.to_json(), **{k: json.dumps(v) for k, v in in_file(calibration()).items()}},
    )
    with pytest.raises(ValueError, match=r"lacks emoinv\.golden, emoinv\.provenance"):
        export_guards.add_guards(tmp_path / "half.onnx", tmp_path / "out.onnx", sets, [tmp_path])
