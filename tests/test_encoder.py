"""The encoder: one file, checked before it runs, the same answer from any thread, and never an embedding of nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from emoinv_edge.audio import to_mono
from emoinv_edge.encoder import MIN_FRAMES, MODEL_NAMES, Encoder
from emoinv_edge.errors import AudioError, EmoinvError, ModelFormatError
from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.golden import run_golden
from emoinv_edge.spec import EncoderSpec
from tests.builders import calibration, emotion_axis, in_file, synthesise, unit_vectors

TINY = EncoderSpec(name="tiny", embedding_dim=32)
SHORTEST = 400 + 160 * (MIN_FRAMES - 1)


# --- embeddings --------------------------------------------------------------------------------


def test_an_embedding_has_unit_norm_and_the_size_of_the_spec(tiny_encoder):
    embedding = tiny_encoder.embed(synthesise(2, 1), 16000)
    assert embedding.vector.shape == (32,) and embedding.vector.dtype == np.float32 and embedding.norm > 0.0
    assert np.linalg.norm(embedding.vector.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_is_taken_wherever_an_array_is(tiny_encoder):
    one, two = (tiny_encoder.embed(synthesise(2, seed), 16000) for seed in (1, 2))
    cosine = one.vector @ two.vector
    assert one @ two == one @ two.vector == one.vector @ two == np.dot(one, two) == cosine
    assert np.array_equal(np.stack([one, two]) @ one, np.stack([one.vector, two.vector]) @ one.vector)
    assert np.asarray(one) is one.vector and np.array(one) is not one.vector
    assert np.asarray(one, np.float64).dtype == np.float64


def test_an_embedding_is_what_the_graph_gives_for_normalised_features(tiny_encoder):
    waveform = synthesise(2, 1)
    session = onnxruntime.InferenceSession(tiny_encoder.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"features": mean_normalise(log_mel(waveform, TINY))[None]})
    got = tiny_encoder.embed(waveform, 16000)
    np.testing.assert_allclose(got, expected[0] / np.linalg.norm(expected[0]), atol=1e-6)
    assert np.array_equal(tiny_encoder.embed_features(log_mel(waveform, TINY)), got)
    assert tiny_encoder.embed_features(log_mel(waveform, TINY)).norm == got.norm


def test_mean_normalisation_is_done_only_where_the_spec_asks_for_it(make_encoder):
    spec = dataclasses.replace(TINY, mean_normalisation=False)
    encoder = Encoder(make_encoder(spec=spec))
    feats = log_mel(synthesise(2, 1), spec)
    session = onnxruntime.InferenceSession(encoder.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"features": feats[None]})
    np.testing.assert_allclose(encoder.embed_features(feats), expected[0] / np.linalg.norm(expected[0]), atol=1e-6)
    assert not np.allclose(encoder.embed_features(feats), Encoder(make_encoder()).embed_features(feats), atol=1e-3)


def test_the_kind_of_array_does_not_change_the_embedding(tiny_encoder):
    pcm = np.round(synthesise(2, 2) * 32767).astype(np.int16)
    expected = tiny_encoder.embed(pcm, 16000)
    for same in (pcm / 32768, (pcm / 32768).astype(np.float32), np.stack([pcm, pcm], 1), pcm.astype(np.int32) << 16):
        assert np.array_equal(tiny_encoder.embed(same, 16000), expected)


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_the_rate_of_the_recording_hardly_changes_the_embedding(tiny_encoder, rate):
    waveform = synthesise(3, 3)
    other = to_mono(waveform, 16000, rate)
    assert float(tiny_encoder.embed(other, rate) @ tiny_encoder.embed(waveform, 16000)) > 0.98


def test_a_waveform_graph_gets_the_waveform(make_encoder):
    encoder = Encoder(make_encoder(flavour="waveform"))
    waveform = synthesise(2, 4)
    session = onnxruntime.InferenceSession(encoder.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"waveform": waveform[None]})
    got = encoder.embed(waveform, 16000)
    np.testing.assert_allclose(got, expected[0] / np.linalg.norm(expected[0]), atol=1e-6)
    with pytest.raises(ValueError, match="call embed with the waveform"):
        encoder.embed_features(log_mel(waveform, encoder.spec))


def test_the_input_is_never_changed(tiny_encoder):
    waveform = synthesise(1, 5)
    feats = log_mel(waveform, TINY)
    waveform.flags.writeable = feats.flags.writeable = False
    assert np.array_equal(tiny_encoder.embed(waveform, 16000), tiny_encoder.embed_features(feats))


@pytest.mark.parametrize("flavour", ["features", "waveform"])
def test_too_short_speech_is_refused_with_the_minimum(make_encoder, flavour):
    encoder = Encoder(make_encoder(flavour=flavour))
    waveform = synthesise(1, 6)
    encoder.embed(waveform[:SHORTEST], 16000)
    with pytest.raises(AudioError, match=rf"at least {SHORTEST} samples.*got {SHORTEST - 1}.*longer"):
        encoder.embed(waveform[: SHORTEST - 1], 16000)
    with pytest.raises(AudioError, match="at least"):
        encoder.embed(waveform[:1], 192000)  # nothing is left of it at 16 kHz


@pytest.mark.parametrize("bad", [np.zeros(16000, np.float32), np.full(16000, np.nan, np.float32), np.zeros(0)])
def test_what_audio_refuses_is_refused(tiny_encoder, bad):
    with pytest.raises(AudioError):
        tiny_encoder.embed(bad, 16000)


@pytest.mark.parametrize(
    ("feats", "error", "cure"),
    [
        (np.zeros((MIN_FRAMES, 79), np.float32), ValueError, r"\(frames, 80\)"),
        (np.zeros((MIN_FRAMES - 1, 80), np.float32), ValueError, f"at least {MIN_FRAMES} frames"),
        (np.zeros((1, MIN_FRAMES, 80), np.float32), ValueError, r"\(frames, 80\)"),
        (np.zeros(80, np.float32), ValueError, r"\(frames, 80\)"),
        (np.zeros((MIN_FRAMES, 80)), TypeError, "float64"),
        ([[0.0] * 80] * MIN_FRAMES, TypeError, "list"),
        (np.full((MIN_FRAMES, 80), np.nan, np.float32), AudioError, "finite"),
        (np.full((MIN_FRAMES, 80), -np.inf, np.float32), AudioError, "finite"),
    ],
)
def test_foreign_features_are_refused_with_their_cure(tiny_encoder, feats, error, cure):
    with pytest.raises(error, match=cure):
        tiny_encoder.embed_features(feats)


def test_features_without_any_change_make_no_embedding(tiny_encoder):
    with pytest.raises(EmoinvError, match="means nothing"):
        tiny_encoder.embed_features(np.full((100, 80), -3.0, np.float32))


@pytest.mark.parametrize("gain", [0.0, np.nan, np.inf, 1e-30])
def test_a_model_that_gives_no_usable_embedding_is_reported_not_scored(make_encoder, gain):
    encoder = Encoder(make_encoder(gain=gain))
    with pytest.raises(EmoinvError, match="means nothing"):
        encoder.embed(synthesise(1, 7), 16000)


def test_a_large_embedding_does_not_overflow(make_encoder):
    # As large as float32 holds: the square of its norm does not fit.
    loud = Encoder(make_encoder(gain=1e30)).embed(synthesise(1, 7), 16000)
    plain = Encoder(make_encoder()).embed(synthesise(1, 7), 16000)
    np.testing.assert_allclose(loud, plain, atol=1e-5)
    assert loud.norm == pytest.approx(1e30 * plain.norm, rel=1e-3)


# --- threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["features", "waveform"])
def test_eight_threads_share_an_encoder_and_get_the_serial_results(make_encoder, flavour):
    encoder = Encoder(make_encoder(flavour=flavour))
    clips = [(synthesise(0.3 + 0.17 * seed, seed, 90 + 15 * seed, 16000), 16000) for seed in range(10)]
    clips += [(to_mono(waveform, 16000, 44100), 44100) for waveform, _ in clips[:4]]
    expected = [encoder.embed(*clip) for clip in clips]
    together = threading.Barrier(8)

    def hammer(thread: int) -> int:
        together.wait(30)
        order = np.random.default_rng(thread).permutation(len(clips) * 5) % len(clips)
        return sum(np.array_equal(encoder.embed(*clips[index]), expected[index]) for index in order)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hammer, range(8))) == [len(clips) * 5] * 8


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_wrong_number_of_threads_is_refused(tiny_encoder_path, threads, error):
    with pytest.raises(error, match="num_threads"):
        Encoder(tiny_encoder_path, num_threads=threads)


# --- the file ----------------------------------------------------------------------------------


def test_the_file_describes_the_encoder(make_encoder):
    provenance = {"format": 1, "version": "1.0.0", "corpora": []}
    path = make_encoder(metadata={"emoinv.provenance": provenance, "emoinv.golden": {"format": 1}, "author": "anyone"})
    encoder = Encoder(str(path))
    assert encoder.spec == TINY
    assert encoder.path == path
    assert encoder.calibration is None
    assert encoder.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert encoder.metadata == {
        "emoinv.spec": json.loads(TINY.to_json()),
        "emoinv.provenance": provenance,
        "emoinv.golden": {"format": 1},
    }
    with pytest.raises(TypeError):
        encoder.metadata["emoinv.spec"] = {}
    assert "tiny" in repr(encoder) and encoder.fingerprint[:12] in repr(encoder)


def test_fingerprint_and_weights_stay_those_of_the_bytes_that_were_read(make_encoder):
    path, other = make_encoder(seed=1), make_encoder(seed=2)
    encoder = Encoder(path)
    before, embedding = encoder.fingerprint, encoder.embed(synthesise(1, 8), 16000)
    path.write_bytes(other.read_bytes())
    assert encoder.fingerprint == before != Encoder(path).fingerprint
    assert np.array_equal(encoder.embed(synthesise(1, 8), 16000), embedding)


def test_the_fingerprint_is_of_what_computes_and_the_hash_of_the_whole_file(make_encoder):
    one, two = (Encoder(make_encoder(metadata={"author": author})) for author in "ab")
    assert one.fingerprint == two.fingerprint and one.file_sha256 != two.file_sha256
    assert Encoder(make_encoder(seed=1)).fingerprint != one.fingerprint
    assert Encoder(make_encoder(spec=dataclasses.replace(TINY, name="other"))).fingerprint == one.fingerprint
    assert Encoder(make_encoder(spec=dataclasses.replace(TINY, low_hz=30.0))).fingerprint != one.fingerprint


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.95, 0.99])
def test_a_truncated_file_is_refused(make_encoder, kept):
    path = make_encoder()
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelFormatError, match=str(path)):
        Encoder(path)


def test_a_file_cut_anywhere_in_its_metadata_is_refused(make_encoder):
    path = make_encoder()
    content = path.read_bytes()
    for length in range(content.index(b"emoinv.spec"), len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFormatError):
            Encoder(path)


@pytest.mark.parametrize("content", [b"", b"Hello\n", b"\0" * 1000, b"PK\3\4" + bytes(200), bytes(range(256)) * 9])
def test_a_foreign_file_is_refused_with_its_cure(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="again"):
        Encoder(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="no such model file"):
        Encoder(tmp_path / "absent.onnx")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        Encoder(tmp_path)


def test_weights_in_a_second_file_are_refused_not_silently_missed(make_encoder, tmp_path):
    model = onnx.load(make_encoder())
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="split.data", size_threshold=0)
    (tmp_path / "split.data").unlink()
    with pytest.raises(ModelFormatError, match=r"split\.onnx"):
        Encoder(path)


def test_an_old_model_without_its_window_is_refused(make_encoder):
    spec = json.loads(TINY.to_json())
    del spec["window"]
    with pytest.raises(ModelFormatError, match=r"encoder-1\.onnx: spec: key 'window' is missing"):
        Encoder(make_encoder(metadata={"emoinv.spec": spec}))


@pytest.mark.parametrize(
    ("metadata", "cure"),
    [
        ({"emoinv.spec": None}, "'emoinv.spec' is missing.*export"),
        ({"emoinv.spec": "spec"}, "JSON object"),
        ({"emoinv.spec": {**json.loads(TINY.to_json()), "format": 2}}, "format 1, got 2; install"),
        ({"emoinv.threshold": 0.5}, "'emoinv.threshold' is unknown; install"),
        ({"emoinv.Spec": {}}, "'emoinv.Spec' is unknown"),
        ({"emoinv.calibration": {"format": 999}}, "calibration.*999"),
        ({"emoinv.calibration": []}, "calibration"),
    ],
)
def test_metadata_that_this_version_does_not_understand_is_refused(make_encoder, metadata, cure):
    with pytest.raises(ModelFormatError, match=cure):
        Encoder(make_encoder(metadata=metadata))


def test_an_emotion_axis_of_another_models_embeddings_is_refused(make_encoder):
    foreign = calibration(emotion_axis=emotion_axis(unit_vectors(1, 0, TINY.embedding_dim - 1)[0]))
    with pytest.raises(ModelFormatError, match="belongs to another model"):
        Encoder(make_encoder(metadata=in_file(foreign)))


def test_metadata_that_is_no_json_is_refused(make_encoder):
    path = make_encoder()
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"emoinv.spec": TINY.to_json(), "emoinv.golden": "{"})
    onnx.save_model(model, path)
    with pytest.raises(ModelFormatError, match=r"'emoinv\.golden' is not JSON"):
        Encoder(path)


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"input_name": "feats"}, r"one input, 'features' or 'waveform', got \['feats'\]"),
        ({"output_name": "embeddings"}, r"one output, 'embedding', or .* got \['embeddings'\]"),
        ({"metadata": {"emoinv.spec": {**json.loads(TINY.to_json()), "embedding_dim": 64}}}, "'batch', 64"),
        ({"metadata": {"emoinv.spec": {**json.loads(TINY.to_json()), "num_mel_bins": 40}}}, "'any', 40"),
        ({"input_shape": ["batch", 300, 80]}, r"'features' of shape.*got \['batch', 300, 80\]"),
        ({"input_shape": [2, "frames", 80]}, r"'features' of shape"),
        ({"flavour": "waveform", "input_shape": ["batch", 48000]}, "'waveform' of shape"),
    ],
    ids=str,
)
def test_a_graph_at_odds_with_its_spec_is_refused(make_encoder, changes, cure):
    with pytest.raises(ModelFormatError, match=cure):
        Encoder(make_encoder(**changes))


def test_a_graph_of_another_number_type_is_refused(make_encoder):
    path = make_encoder()
    model = onnx.load(path)
    double = onnx.TensorProto.DOUBLE
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = double
    for weight in model.graph.initializer:
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(float), weight.name))
    onnx.save_model(model, path)
    with pytest.raises(ModelFormatError, match=r"tensor\(float\), got tensor\(double\)"):
        Encoder(path)


def save_graph(path, spec, nodes, input_shape, output_shape, **constants):
    value, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value(nodes[0].input[0], number, input_shape)],
        [value("embedding", number, output_shape)],
        [onnx.numpy_helper.from_array(np.array(array), name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(model, {"emoinv.spec": spec.to_json()})
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize(
    ("source", "input_shape", "output_shape", "cure"),
    [
        ("features", ["frames", 80], ["frames", 80], r"'features' of shape \['batch', 'any', 80\]"),
        ("features", ["batch", 1, "frames", 80], ["batch", 1, "frames", 80], "'features' of shape"),
        ("features", ["batch", "frames", 80], ["batch", "frames", 80], r"'embedding' of shape \['batch', 80\]"),
        ("waveform", ["samples"], ["samples"], r"'waveform' of shape \['batch', 'any'\]"),
        ("waveform", ["batch", 1, "samples"], ["batch", 1, "samples"], "'waveform' of shape"),
    ],
)
def test_a_graph_of_another_rank_is_refused(tmp_path, source, input_shape, output_shape, cure):
    nodes = [onnx.helper.make_node("Identity", [source], ["embedding"])]
    spec = dataclasses.replace(TINY, embedding_dim=80)
    path = save_graph(tmp_path / "rank.onnx", spec, nodes, input_shape, output_shape)
    with pytest.raises(ModelFormatError, match=cure):
        Encoder(path)


def test_a_size_that_the_graph_leaves_open_is_checked_when_it_runs(tmp_path):
    nodes = [
        onnx.helper.make_node("Abs", ["features"], ["magnitude"]),
        onnx.helper.make_node("ReduceMean", ["magnitude"], ["pooled"], axes=[1], keepdims=0),
        onnx.helper.make_node("Reshape", ["pooled", "shape"], ["embedding"]),
    ]
    shapes = (["batch", "frames", 80], ["batch", "size"])
    for size, fits in ((80, True), (16, False)):
        spec = dataclasses.replace(TINY, embedding_dim=size)
        encoder = Encoder(save_graph(tmp_path / f"{size}.onnx", spec, nodes, *shapes, shape=[1, -1]))
        if fits:
            assert encoder.embed(synthesise(1, 9), 16000).vector.shape == (80,)
        else:
            with pytest.raises(ModelFormatError, match=r"\(1, 16\), got \(1, 80\)"):
                encoder.embed(synthesise(1, 9), 16000)


# --- the shipped models ------------------------------------------------------------------------


def test_a_shipped_model_is_loaded_by_name(tmp_path, monkeypatch, make_encoder):
    (tmp_path / "models").mkdir()
    for name in MODEL_NAMES:
        (tmp_path / "models" / f"{name}.onnx").write_bytes(
            make_encoder(spec=dataclasses.replace(TINY, name=name)).read_bytes()
        )
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    assert Encoder.default().spec.name == "base"
    assert [Encoder.open(name).spec.name for name in MODEL_NAMES] == list(MODEL_NAMES)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_each_shipped_model_computes_here_what_it_did_where_it_was_made(name):
    encoder = Encoder.open(name)
    assert encoder.spec.name == name and encoder.calibration is not None
    results = run_golden(encoder)
    assert len(results) >= 3 and all(result.passed for result in results), results


def test_a_missing_shipped_model_is_refused_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelFormatError, match=r"without the model 'base'.*install emoinv-edge again"):
        Encoder.default()


@pytest.mark.parametrize("name", ["huge", "../base", "base.onnx"])
def test_an_unknown_name_is_the_path_of_no_file(name):
    with pytest.raises(ModelFormatError, match=r"no such model file.*base, small, large are opened by name"):
        Encoder.open(name)


def test_a_file_is_opened_by_its_path(tiny_encoder_path):
    for path in (tiny_encoder_path, str(tiny_encoder_path)):
        assert Encoder.open(path, num_threads=2).spec == TINY


def test_a_missing_tier_is_refused_with_those_there_are(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.onnx").write_bytes(b"")
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelFormatError, match="without the model 'small'; it holds base: use that"):
        Encoder.open("small")
