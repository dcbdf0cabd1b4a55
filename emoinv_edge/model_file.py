"""A model file's digest, by which a file that was damaged on its way is refused before anything in it runs.

It is the last metadata entry of the file, at a fixed place from its end: the SHA-256 of every
byte before it. It guards against accidents, not against somebody who can write the file: for that, compare its
SHA-256 with the one published beside the model.
"""

from __future__ import annotations

import hashlib
import os

from .errors import ModelFormatError

__all__ = ["DIGEST_KEY", "check_digest", "present_fingerprint", "seal", "sealed_body"]

DIGEST_KEY = "emoinv.digest"

# What base and small were called before a fingerprint was computed from what computes the embedding (`model_graph`),
# and what it is now. Only a model that computes the very same has the fingerprint on the right.
RENAMED = {
    "bbe2c7230ef8e9331bfe13f3ed874aca090f26a28cb72464561a46b05abb7e04": (
        "ddc3f12c3f1f04612ff4ec9a7e096ad16fb1adda578987d2c7c1ff17bcb08ac0"
    ),
    "97dbf3825e0bc9934001cabd1bc367642d1e6176bf359e1c3a9042f4e97479e9": (
        "8c8d68a7ec1e180e6e28333f7c64b038f4eb12e1848db7e340a84f48b3a5dd44"
    ),
}

# ModelProto.metadata_props (field 14) holding {key (1): DIGEST_KEY, value (2): 64 hex digits in quotes}.
_KEY = DIGEST_KEY.encode()
_VALUE_LENGTH = 66
_HEAD = bytes([0x72, 4 + len(_KEY) + _VALUE_LENGTH, 0x0A, len(_KEY)]) + _KEY + bytes([0x12, _VALUE_LENGTH, 0x22])
_TAIL_LENGTH = len(_HEAD) + _VALUE_LENGTH - 1


def present_fingerprint(fingerprint: str) -> str:
    """The fingerprint that a shipped model has now, for the one that it had once; any other as it is."""
    return RENAMED.get(fingerprint, fingerprint)


def seal(content: bytes) -> bytes:
    """Append the digest to a serialised model that has none."""
    return content + _HEAD + hashlib.sha256(content).hexdigest().encode() + b'"'


def sealed_body(content: bytes) -> bytes | None:
    """The bytes that the digest of `content` covers, or None if it does not end with one."""
    if content[-_TAIL_LENGTH : len(content) - _VALUE_LENGTH + 1] != _HEAD:
        return None
    return content[:-_TAIL_LENGTH]


def check_digest(content: bytes, path: str | os.PathLike[str]) -> tuple[str, bool]:
    """Hash a model file once: the whole of it, and its own digest where it ends with one.

    Returns
    -------
    sha256 : str
        Of the whole file, in hexadecimal.
    sealed : bool
        Whether the file ends with a digest, which is then right.

    Raises
    ------
    ModelFormatError
        If the bytes before the digest are not those that were exported.
    """
    body = sealed_body(content)
    if body is None:
        return hashlib.sha256(content).hexdigest(), False
    hashed = hashlib.sha256(body)
    found, expected = hashed.hexdigest(), content[-65:-1]
    if content[-1:] != b'"' or found.encode() != expected:
        raise ModelFormatError(
            f"{os.fspath(path)}: the first {len(body)} bytes have SHA-256 {found}, "
            f"expected {expected.decode('ascii', 'replace')}; the file was damaged: copy it again"
        )
    hashed.update(content[len(body) :])
    return hashed.hexdigest(), True
