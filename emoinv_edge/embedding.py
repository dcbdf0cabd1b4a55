"""Embedding: a voice as a vector, and one of several windows of a long recording."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmoinvError

__all__ = ["Embedding", "combine", "windows_of"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A voice as a vector; wherever an array is taken, this is too, as its `vector`.

    Parameters
    ----------
    vector : ndarray, shape (embedding_dim,), float32
        Of unit Euclidean norm, so that ``a @ b`` of two embeddings is their cosine.
    norm : float
        The norm, above 0, that the model's output had before it was scaled to 1; in the model's own unit, so that
        only norms of one model compare. It is low for unusual emotions, noise and little speech, and so explains a
        low cosine (a quality measure of WeSpeaker's; compare MagFace, Meng et al., arXiv:2103.06627).
    windows : ndarray, shape (windows, embedding_dim), float32, or None
        Of unit norm, of windows within the same speech in the order of time; None where the file gives none.
    """

    vector: NDArray[np.float32]
    norm: float
    windows: NDArray[np.float32] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The vector, as NumPy asks for it."""
        return np.array(self.vector, dtype) if copy else np.asarray(self.vector, dtype)

    def __matmul__(self, other: Any) -> Any:
        """The cosine with another embedding, or the product with an array."""
        return self.vector @ np.asarray(other)

    def __rmatmul__(self, other: Any) -> Any:
        """The product of an array with this embedding."""
        return np.asarray(other) @ self.vector


def combine(embeddings: Sequence[Embedding], seconds: Sequence[float]) -> Embedding:
    """One embedding of long speech from those of its consecutive windows: their mean, at unit norm again.

    Each window counts by its seconds and by its norm, which is low where there is noise rather than speech.

    Parameters
    ----------
    embeddings : sequence of Embedding
    seconds : sequence of float
        How much speech is behind each.

    Raises
    ------
    EmoinvError
        If the windows have nothing in common, so that their mean means nothing.
    """
    shares = np.asarray(seconds, np.float64) / np.sum(seconds)
    norms = np.array([embedding.norm for embedding in embeddings])
    mean = (shares * norms / (shares @ norms)) @ np.stack([each.vector for each in embeddings]).astype(np.float64)
    norm = float(np.linalg.norm(mean))
    if not norm >= 1e-3:  # written so that NaN fails
        raise EmoinvError(
            f"expected windows of one voice, got embeddings whose mean has a norm of {norm:.2g}; "
            "record one person alone"
        )
    within = [each.windows for each in embeddings if each.windows is not None]
    windows = np.concatenate(within) if len(within) == len(embeddings) else None
    return Embedding((mean / norm).astype(np.float32), float(np.exp(shares @ np.log(norms))), windows)


def windows_of(length: int, longest: int) -> list[slice]:
    """Cuts of `length` into as few windows of at most `longest` as there can be, all nearly as long."""
    count = -(-length // longest)
    edges = [length * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
