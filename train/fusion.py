"""One target of several teachers, in the space of the first.

Teachers of other shapes and training err on other trials: the mean of their cosines beats each of them.
That mean is the cosine of their unit embeddings laid side by side. `fit_projection` brings the long
vector down to the first teacher's dimensions by the principal axes (which keep the cosines) and turns
it onto the first teacher's embeddings (orthogonal Procrustes: Schönemann 1966), so that an encoder
started from that teacher has little way to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .prepare import PreparedSet
from .teachers import Teacher, fused_similarity, targets_path

__all__ = ["fit_projection", "fuse", "project"]


def fit_projection(first: NDArray[np.float32], *others: NDArray[np.float32]) -> NDArray[np.float32]:
    """The projection from `fused_similarity` of the teachers to the first one's space.

    Parameters
    ----------
    first, others : ndarray, shape (clips, each its own dim)
        Embeddings of the same clips.

    Returns
    -------
    ndarray, shape (sum of the dims, first dim), orthonormal columns

    Raises
    ------
    ValueError
        If there are fewer clips than the first teacher has dimensions: its axes would be undetermined.
    """
    clips, dim = first.shape
    if clips < dim:
        raise ValueError(f"expected at least {dim} clips to fit a projection to {dim} dimensions, got {clips}")
    together = fused_similarity(first, *others).astype(np.float64)
    _, axes = np.linalg.eigh(together.T @ together)
    axes = axes[:, ::-1][:, :dim]
    left, _, right = np.linalg.svd((together @ axes).T @ first.astype(np.float64))
    return np.asarray(axes @ (left @ right), np.float32)


def project(projection: NDArray[np.float32], *embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Targets of unit norm, shape (clips, dim), of the teachers' embeddings in the order of the fit."""
    targets = fused_similarity(*embeddings) @ projection
    return np.asarray(targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-9), np.float32)


def fuse(folders: Sequence[Path], others: Sequence[Teacher]) -> NDArray[np.float32]:
    """Write ``fused.npy`` beside each taught set: the joint target of the initial encoder and `others`.

    Raises
    ------
    ValueError
        If a set was not taught by the initial encoder, or not by one of the others.
    """
    taught = []
    for folder in folders:
        paths = [folder / "public.npy", *(targets_path(o, PreparedSet(folder), folder / "teachers") for o in others)]
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path} is missing; make it with `python -m train teach START SET --beside TEACHER`")
        taught.append([np.load(path) for path in paths])
    projection = fit_projection(*(np.concatenate(each) for each in zip(*taught, strict=True)))
    for folder, embeddings in zip(folders, taught, strict=True):
        part = folder / "fused.part.npy"
        np.save(part, project(projection, *embeddings))
        part.replace(folder / "fused.npy")
    return projection
