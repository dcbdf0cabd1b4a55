"""The portable profile file: one profile, sealed with a passphrase, to carry to another device.

Byte by byte, format 2 (numbers are unsigned and little-endian)::

    offset  bytes  what
    0       8      magic: 89 45 4D 4F 49 4E 56 0A ("\\x89EMOINV\\n")
    8       2      format: 2
    10      1      key derivation: 1 = scrypt (RFC 7914) with 32 bytes of output
    11      1      scrypt: log2 N, 14 to 17 (written: 15)
    12      1      scrypt: r, 8
    13      1      scrypt: p, 1 to 8 (written: 3)
    14      2      zero
    16      16     scrypt: salt
    32      12     AES-256-GCM: nonce
    44      n      AES-256-GCM: ciphertext of the profile
    44+n    16     AES-256-GCM: tag; the file ends here

The passphrase is taken as UTF-8. The scrypt output is the AES-256 key. Bytes 0 to 43 are the
associated data, so no byte of the file can change unnoticed. The plaintext is the profile as `codec`
lays it out, with its clips where they were kept. Nothing about the profile, not even its name, can be read
without the passphrase; its size shows roughly how much speech it holds.
"""

from __future__ import annotations

import os
import secrets
import struct

from ..errors import SchemaError, SealError, StoreError
from ..files import read_regular, write_atomically
from ..profiles import Profile
from .codec import decode_profile, encode_profile
from .keys import NONCE_BYTES, SALT_BYTES, SCRYPT_LOG_N, SCRYPT_P, SCRYPT_R, TAG_BYTES, Passphrase, Seal

__all__ = ["FORMAT", "MAX_FILE_BYTES", "open_profile", "read_profile_file", "seal_profile", "write_profile_file"]

MAGIC = b"\x89EMOINV\n"
FORMAT = 2
HEAD = struct.Struct("<8sHBBBBH16s")
HEADER_BYTES = HEAD.size + NONCE_BYTES
MAX_FILE_BYTES = 1 << 30


def seal_profile(profile: Profile, passphrase: Passphrase) -> bytes:
    """The bytes of a portable file that holds `profile`."""
    salt = secrets.token_bytes(SALT_BYTES)
    head = HEAD.pack(MAGIC, FORMAT, 1, SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P, 0, salt)
    seal = Seal(passphrase.derive(salt))
    nonce = secrets.token_bytes(NONCE_BYTES)
    return head + seal.close(encode_profile(profile), head + nonce, nonce)


def open_profile(data: bytes, passphrase: Passphrase) -> Profile:
    """The profile in the bytes of a portable file.

    Raises
    ------
    StoreError
        If the bytes are not such a file.
    SchemaError
        If the file has another format.
    SealError
        If the passphrase is wrong or a byte was altered. No other exception leaves, whatever the bytes are.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise StoreError("not a portable profile; expected a file made by `emoinv profiles export`")
    if len(data) < HEADER_BYTES + TAG_BYTES:
        raise StoreError(f"the portable profile is cut off after {len(data)} bytes; copy it again")
    _, version, derivation, log_n, r, p, zero, salt = HEAD.unpack_from(data)
    if version != FORMAT:
        raise SchemaError(
            f"the portable profile has format {version}, expected {FORMAT}; it was altered, or "
            "made by another version of emoinv-edge: install that one or a newer one"
        )
    if derivation != 1 or not 14 <= log_n <= 17 or r != 8 or not 1 <= p <= 8 or zero != 0:
        raise SealError("the portable profile's header was altered; copy the file again")
    seal = Seal(passphrase.derive(salt, log_n, r, p))
    try:
        plain = seal.open(data[HEAD.size :], data[:HEADER_BYTES])
    except SealError:
        raise SealError(
            "the portable profile does not open: the passphrase is another one, or the file was altered or cut off"
        ) from None
    return decode_profile(plain)


def write_profile_file(path: str | os.PathLike[str], profile: Profile, passphrase: Passphrase) -> None:
    """Write the portable file of `profile` atomically, readable by its owner only."""
    try:
        write_atomically(path, seal_profile(profile, passphrase))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); nothing was exported") from None


def read_profile_file(path: str | os.PathLike[str], passphrase: Passphrase) -> Profile:
    """The profile in a portable file; raises what `open_profile` raises, with the path in the message."""
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read as a portable profile ({error.strerror})") from None
    try:
        return open_profile(data, passphrase)
    except StoreError as error:
        raise type(error)(f"{path}: {error}") from None
