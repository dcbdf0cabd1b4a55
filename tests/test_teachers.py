"""Teachers: each clip is embedded once, the right way, and never mistaken for another teacher's."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from emoinv_edge.encoder import Encoder
from tests.training import TINY_SPEC, prepared, tiny_encoder
from train.evaluation.embeddings import unit
from train.model import save_checkpoint
from train.teachers import Teacher, fused_similarity, middle, open_teacher, targets_path, teach


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("teacher") / "toy", speakers=3, seconds=0.7)


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "teacher.pt", tiny_encoder(), TINY_SPEC)
    return tmp_path / "teacher.pt"


def test_a_file_of_this_project_teaches_what_its_encoder_embeds(clips, tiny_encoder_path, tmp_path):
    targets = teach(open_teacher(tiny_encoder_path), clips, tmp_path)
    encoder = Encoder(tiny_encoder_path)
    for index in range(len(clips.clips)):
        assert np.allclose(targets[index], encoder.embed(clips.waveform(index), 16000), atol=1e-5)


def test_a_foreign_file_is_fed_by_the_spec_given_and_its_own_spec_wins(tiny_encoder_path, tmp_path, clips):
    model = onnx.load(tiny_encoder_path)
    spec = model.metadata_props[0].value
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    from emoinv_edge.spec import EncoderSpec

    right = EncoderSpec.from_json(spec)
    povey = dataclasses.replace(right, window="povey")
    waves = [clips.waveform(0)]
    own = open_teacher(tiny_encoder_path, spec=povey).embed(waves)
    assert np.array_equal(own, open_teacher(tmp_path / "foreign.onnx", spec=right).embed(waves))
    assert not np.array_equal(own, open_teacher(tmp_path / "foreign.onnx", spec=povey).embed(waves))


def test_a_checkpoint_teaches_too(clips, checkpoint, tmp_path):
    targets = teach(open_teacher(checkpoint), clips, tmp_path / "targets")
    assert targets.shape == (len(clips.clips), 16) and np.allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)


def counting(teacher):
    calls = []

    def embed(waveforms):
        calls.append(len(waveforms))
        return teacher.embed(waveforms)

    return dataclasses.replace(teacher, embed=embed), calls


def test_nothing_is_embedded_twice(clips, checkpoint, tmp_path):
    teacher, calls = counting(open_teacher(checkpoint))
    first = teach(teacher, clips, tmp_path / "targets")
    assert sum(calls) == len(clips.clips)
    assert np.array_equal(teach(teacher, clips, tmp_path / "targets"), first) and sum(calls) == len(clips.clips)
    assert len(list((tmp_path / "targets").iterdir())) == 1


def test_a_stopped_run_goes_on_where_it_was(clips, checkpoint, tmp_path):
    teacher, calls = counting(open_teacher(checkpoint))

    def stop(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(teacher, clips, tmp_path / "targets", stop, chunk=3)
    resumed = teach(teacher, clips, tmp_path / "targets", chunk=3)
    assert sum(calls) == len(clips.clips)
    assert np.array_equal(resumed, teach(teacher, clips, tmp_path / "whole", chunk=3))


def test_a_torn_part_is_begun_anew(clips, checkpoint, tmp_path):
    teacher = open_teacher(checkpoint)
    path = targets_path(teacher, clips, tmp_path / "targets")
    path.parent.mkdir()
    path.with_suffix(".0of1.part").write_bytes(b"\x93NUMPY torn")
    assert np.isfinite(teach(teacher, clips, tmp_path / "targets")).all()


def test_another_teacher_or_another_set_has_targets_of_its_own(clips, checkpoint, tmp_path):
    save_checkpoint(tmp_path / "other.pt", tiny_encoder(1), TINY_SPEC)
    other = prepared(tmp_path / "x" / "toy", speakers=2)
    teachers = [open_teacher(checkpoint), open_teacher(tmp_path / "other.pt")]
    paths = {targets_path(teacher, each, tmp_path) for teacher in teachers for each in (clips, other)}
    assert len(paths) == 4


def test_of_a_long_clip_the_middle_is_embedded():
    wave = np.arange(10, dtype=np.float32)
    assert middle(wave, 4).tolist() == [3, 4, 5, 6] and middle(wave, 20) is not None and len(middle(wave, 20)) == 10


def test_a_missing_file_or_one_of_another_shape_is_refused(tmp_path, tiny_encoder_path):
    with pytest.raises(ValueError, match="no such teacher"):
        open_teacher(tmp_path / "none.onnx")
    model = onnx.load(tiny_encoder_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"expected one input \(batch, frames, 64\)"):
        open_teacher(tmp_path / "foreign.onnx", spec=dataclasses.replace(TINY_SPEC, num_mel_bins=64))
    with pytest.raises(ValueError, match=r"expected embeddings of 16 numbers, got shape \(32,\)"):
        open_teacher(tmp_path / "foreign.onnx", spec=TINY_SPEC).embed([np.ones(8000, np.float32) * 0.1])
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx: expected an ONNX model"):
        open_teacher(tmp_path / "text.onnx")


def test_an_embedding_of_nothing_is_an_error_not_a_target(clips, tmp_path, tiny_encoder_path):
    model = onnx.load(tiny_encoder_path)
    for tensor in model.graph.initializer:
        if tensor.name == "rotation":
            tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), "rotation"))
    onnx.save(model, tmp_path / "zero.onnx")
    with pytest.raises(ValueError, match="zero or not finite"):
        teach(open_teacher(tmp_path / "zero.onnx"), clips, tmp_path / "targets")


def test_the_fused_cosine_is_the_mean_of_the_teachers_cosines():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 8)), rng.normal(size=(5, 3))
    fused = fused_similarity(a, 7 * b)
    mean = (unit(a) @ unit(a).T + unit(b) @ unit(b).T) / 2
    assert np.allclose(fused @ fused.T, mean, atol=1e-5)
    with pytest.raises(ValueError, match="of the same clips"):
        fused_similarity(a, b[:4])


def test_a_teacher_may_be_any_function(clips, tmp_path):
    def embed(waveforms):
        return np.stack([np.array([1.0, 0.0], np.float32) for _ in waveforms])

    assert teach(Teacher("mine", "f" * 64, 2, embed), clips, tmp_path).shape == (len(clips.clips), 2)
