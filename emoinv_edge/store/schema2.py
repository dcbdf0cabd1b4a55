"""Embeddings of a store of schema 2, which was written before version 1.0: read, never written.

It kept ``Q @ embedding``, Q an orthogonal matrix drawn from a secret that lay beside the store's data
key. The first change to such a store brings it to the present schema (`StoreFile.transaction`).

Q is a product of Householder reflections of shrinking length (Stewart 1980, doi:10.1137/0717034). Their
normal deviates come from SHAKE-256 of the secret by the Box-Muller transform.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

from ..profiles import Exemplar

__all__ = ["SCHEMA_2", "orthogonal_matrix", "turned_back"]

SCHEMA_2 = 2


def turned_back(exemplar: Exemplar, secret: bytes) -> Exemplar:
    """The exemplar with the encoder's own embedding."""
    embedding = exemplar.embedding.astype(np.float64)
    embedding = embedding @ orthogonal_matrix(secret, embedding.size)  # the transpose is the inverse
    embedding /= np.linalg.norm(embedding)
    return dataclasses.replace(exemplar, embedding=embedding.astype(np.float32))


@functools.lru_cache(maxsize=4)
def orthogonal_matrix(secret: bytes, dim: int) -> NDArray[np.float64]:
    """The matrix of a store with this secret, shape (dim, dim)."""
    count = dim * (dim + 1) // 2
    pairs = (count + 1) // 2
    label = b"emoinv orthogonal 1\x00" + str(dim).encode("ascii") + b"\x00"
    stream = hashlib.shake_256(label + secret).digest(16 * pairs)
    # 53 bits each, in (0, 1]
    uniform = ((np.frombuffer(stream, "<u8") >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * np.pi * uniform[pairs:]
    deviates = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
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
    matrix.setflags(write=False)
    return matrix
