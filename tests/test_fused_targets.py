"""Several teachers, one target: what the projection keeps and where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training import prepared, random_embeddings
from train.teachers import Teacher, fit_projection, fuse, fused_similarity, project, targets_path


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def teachers(clips=300, rank=12, dims=(24, 16), seed=0):
    """Embeddings of two teachers that hear the same `rank` things."""
    rng = np.random.default_rng(seed)
    heard = rng.normal(size=(clips, rank))
    return [unit(heard @ rng.normal(size=(rank, dim))) for dim in dims]


def test_the_joint_target_keeps_the_mean_of_the_teachers_cosines():
    first, second = teachers()
    target = project(fit_projection(first, second), first, second)
    expected = (first @ first.T + second @ second.T) / 2
    assert target.shape == first.shape
    assert np.abs(target @ target.T - expected).max() < 0.02


def test_the_joint_target_lies_near_the_first_teachers_embedding():
    first, second = teachers()
    target = project(fit_projection(first, second), first, second)
    aligned = np.sum(target * first, axis=1).mean()
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0].astype(np.float32)
    assert aligned > 0.9 > np.sum(target * (first @ turned), axis=1).mean()


def test_one_teacher_alone_is_its_own_target():
    (first,) = teachers(dims=(8,))
    assert np.allclose(project(fit_projection(first), first), first, atol=1e-5)


def test_the_projection_has_orthonormal_columns():
    first, second = teachers()
    projection = fit_projection(first, second)
    assert projection.shape == (40, 24)
    assert np.allclose(projection.T @ projection, np.eye(24), atol=1e-5)


def test_too_few_clips_are_refused():
    first, second = teachers(clips=20)
    with pytest.raises(ValueError, match="expected at least 24 clips to fit a projection to 24 dimensions, got 20"):
        fit_projection(first, second)


def test_sets_are_fused_together_and_a_set_without_a_teacher_is_named(tmp_path):
    other = Teacher("other", "f" * 64, 12, lambda waveforms: np.zeros((len(waveforms), 12), np.float32))
    folders = []
    for seed, name in enumerate(("a", "b")):
        clips = prepared(tmp_path / name, name, speakers=4, takes=2, seconds=0.5)
        folders.append(tmp_path / name)
        np.save(tmp_path / name / "public.npy", random_embeddings(clips, 16, seed))
        (tmp_path / name / "teachers").mkdir()
        if name == "b":
            with pytest.raises(ValueError, match="is missing; make it with"):
                fuse(folders, [other])
        np.save(targets_path(other, clips, tmp_path / name / "teachers"), random_embeddings(clips, 12, seed + 5))
    projection = fuse(folders, [other])
    for folder in folders:
        fused = np.load(folder / "fused.npy")
        kept = [np.load(folder / "public.npy"), np.load(next((folder / "teachers").glob("*.npy")))]
        assert np.allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)
        assert np.allclose(fused, unit(fused_similarity(*kept) @ projection), atol=1e-5)
