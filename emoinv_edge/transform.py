"""The secret orthogonal transform under which a store keeps its embeddings.

A store keeps ``Q @ embedding``, where Q is an orthogonal matrix drawn from the store's own secret.
An orthogonal matrix leaves every inner product as it was, so scores do not change; and vectors of
two stores have nothing to do with each other, so that they can be *renewed* (ISO/IEC 24745): a new
secret, and what leaked before matches nothing any more. What this gives, and what not:

- **renewability, revocability**: yes. `ProfileStore.rotate` draws a new secret; the same speech then
  has unrelated vectors, without a new enrolment.
- **unlinkability**: for single vectors yes, while the secrets stay secret. Not for sets: the angles
  *between* the exemplars of one profile are the same in every store, so whoever holds the vectors of
  the same several exemplars from two stores can tell that they belong together.
- **irreversibility**: no. Whoever has the secret turns the vectors back; so does whoever knows as
  many (embedding, vector) pairs of one store as an embedding has dimensions. And what an embedding
  itself gives away of a speaker, a transformed one gives away together with the secret.
- **confidentiality**: not by this, but by the seals. The secret lies in the store's file, sealed by
  the user's key; in a store in plaintext it lies open, and the transform protects nothing.

Q is a product of Householder reflections of shrinking length, which makes it uniform over the
orthogonal group (Stewart 1980, doi:10.1137/0717034). Their normal deviates come from SHAKE-256 of the
secret by the Box-Muller transform, not from a random generator of a library, so that no version of
NumPy changes them by more than rounding.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["orthogonal_matrix"]


def _normal_deviates(secret: bytes, label: bytes, count: int) -> NDArray[np.float64]:
    pairs = (count + 1) // 2
    stream = hashlib.shake_256(b"emoinv orthogonal 1\x00" + label + b"\x00" + secret).digest(16 * pairs)
    # 53 bits each, in (0, 1]
    uniform = ((np.frombuffer(stream, "<u8") >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def orthogonal_matrix(secret: bytes, dim: int) -> NDArray[np.float64]:
    """An orthogonal matrix that only `secret` determines, shape (dim, dim).

    Parameters
    ----------
    secret : bytes
        32 random bytes.
    dim : int
        Length of the embeddings; every length has a matrix of its own.
    """
    deviates = _normal_deviates(secret, str(dim).encode("ascii"), dim * (dim + 1) // 2)
    matrix = np.eye(dim)
    start = 0
    for first in range(dim):
        mirror = deviates[start : start + dim - first].copy()
        start += dim - first
        sign = 1.0 if mirror[0] >= 0.0 else -1.0
        mirror[0] += sign * np.linalg.norm(mirror)
        mirror /= np.linalg.norm(mirror)
        block = matrix[first:]
        block -= np.outer(2.0 * mirror, mirror @ block)
        block[0] *= -sign
    return matrix
