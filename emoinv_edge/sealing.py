"""Keys and seals: how the profile store and the portable profile file keep bytes secret.

A *seal* is AES-256-GCM (from ``cryptography``) with a random 96-bit nonce::

    sealed = nonce (12 bytes) | ciphertext | tag (16 bytes)

Whatever must not be exchanged for something else (the table, the row, its version, the model's
fingerprint, the schema) goes in as associated data: it is not stored, but a seal opens only with
the same associated data.

A key comes from one of these sources, none of which ever shows its secret in a ``repr``:

- ``bytes`` of length 32, or a function of no argument that returns them (a keyring, a TPM, a prompt);
- `KeyFile`: 64 hexadecimal digits in a file, made with mode 0600 if it is missing;
- `KeyVariable`: the same digits in an environment variable;
- `Passphrase`: scrypt with N = 2**15, r = 8, p = 3 (32 MiB for a moment, a fraction of a second);
- `PLAINTEXT`: no secrecy at all. It must be asked for by name; nothing falls back to it.

A leaked key opens everything that it sealed. Python cannot wipe memory: while the process lives,
keys are in its memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import pathlib
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NoReturn

from .errors import SealError, StoreError

__all__ = [
    "KEY_VARIABLE",
    "PLAINTEXT",
    "KeyFile",
    "KeySource",
    "KeyVariable",
    "Passphrase",
    "Plaintext",
    "Seal",
    "associated",
    "derive_key",
    "key_kind",
    "scrypt_key",
    "secret_candidates",
]

KEY_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 15, 8, 3
KEY_VARIABLE = "EMOINV_STORE_KEY"


class Plaintext:
    """The type of `PLAINTEXT`: profiles are written in the clear because the caller said so."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PLAINTEXT"


PLAINTEXT = Plaintext()


class Passphrase:
    """A passphrase, hidden from ``repr``; the key is derived from it with scrypt and a random salt."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"expected the passphrase as str, got {type(text).__name__}")
        if len(text) < 8:
            raise ValueError("expected a passphrase of at least 8 characters; choose a longer one")
        self._text = text

    def secret(self) -> bytes:
        """The passphrase as UTF-8."""
        return self._text.encode("utf-8", "surrogatepass")

    def __repr__(self) -> str:
        return "Passphrase(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase is not pickled; ask for it again in the other process")


@dataclasses.dataclass(frozen=True, slots=True)
class KeyFile:
    """A key kept in a file of its own, as 64 hexadecimal digits.

    Keep it on another medium than the store where you can: who copies both has the profiles.
    """

    path: pathlib.Path | str

    def create(self) -> None:
        """Make the file with a fresh key and mode 0600, unless it is there already; atomic."""
        path = pathlib.Path(self.path)
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = _write_key(path, secrets.token_bytes(KEY_BYTES), f".{secrets.token_hex(4)}")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first; its key counts
        except OSError:  # a file system without hard links
            if not path.exists():
                draft.rename(path)
                return
        draft.unlink()

    def read(self, suffix: str = "") -> bytes:
        """The 32 bytes of the key, of the file itself or of its neighbour with `suffix`.

        Raises
        ------
        StoreError
            If the file is missing, not a key, or readable by other users.
        """
        path = pathlib.Path(f"{self.path}{suffix}")
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read(256)
        except OSError as error:
            raise StoreError(
                f"key file {path}: {error.strerror}; restore it from a copy, or say where the key is. "
                "Without the key the profiles cannot be opened: enrol again into a new store"
            ) from None
        if os.name == "posix" and mode & 0o077:
            raise StoreError(f"key file {path}: mode {mode:04o} lets other users at the key; run chmod 600 {path}")
        return _key_from_text(text, f"key file {path}")

    def write_successor(self, key: bytes) -> None:
        """Write the key that is about to replace this one to the neighbour ``<path>.new``."""
        path = pathlib.Path(self.path)
        os.replace(_write_key(path, key, f".{secrets.token_hex(4)}"), f"{path}.new")

    def promote_successor(self) -> None:
        """Put ``<path>.new`` in the place of the key file."""
        os.replace(f"{self.path}.new", self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class KeyVariable:
    """A key kept in an environment variable, as 64 hexadecimal digits."""

    name: str = KEY_VARIABLE

    def read(self) -> bytes:
        """The 32 bytes of the key.

        Raises
        ------
        StoreError
            If the variable is not set or not a key.
        """
        text = os.environ.get(self.name)
        if text is None:
            raise StoreError(f"environment variable {self.name} is not set; expected 64 hexadecimal digits")
        return _key_from_text(text.encode("utf-8", "surrogateescape"), f"environment variable {self.name}")


KeySource = bytes | Callable[[], bytes] | KeyFile | KeyVariable | Passphrase | Plaintext


def _key_from_text(text: bytes, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(f"{where}: expected {2 * KEY_BYTES} hexadecimal digits; make them with `openssl rand -hex 32`")
    return key


def _write_key(path: pathlib.Path, key: bytes, suffix: str) -> pathlib.Path:
    draft = pathlib.Path(f"{path}{suffix}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(key.hex().encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"key file {path}: cannot be written ({error.strerror}); nothing was changed") from None
    return draft


def key_kind(source: KeySource) -> str:
    """What a store notes about its key: ``"plaintext"``, ``"passphrase"`` or ``"key"``."""
    if isinstance(source, Plaintext):
        return "plaintext"
    if isinstance(source, Passphrase):
        return "passphrase"
    if isinstance(source, (bytes, KeyFile, KeyVariable)) or callable(source):
        return "key"
    raise TypeError(
        "expected a key as 32 bytes, a function that returns them, KeyFile, KeyVariable, Passphrase or PLAINTEXT, "
        f"got {type(source).__name__}"
    )


def secret_candidates(source: KeySource) -> Iterator[bytes]:
    """The secrets that may open what `source` sealed, the likeliest first.

    A key file has a second candidate while a rotation is under way: the key written next to it.
    """
    if isinstance(source, Plaintext):
        return
    if isinstance(source, Passphrase):
        yield source.secret()
    elif isinstance(source, KeyFile):
        yield source.read()
        try:
            successor = source.read(".new")
        except StoreError:  # there is none, as a rule
            return
        yield successor
    else:
        key = source.read() if isinstance(source, KeyVariable) else source if isinstance(source, bytes) else source()
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {got}; make one with secrets.token_bytes(32)")
        yield key


def scrypt_key(
    passphrase: bytes, salt: bytes, log_n: int = SCRYPT_LOG_N, r: int = SCRYPT_R, p: int = SCRYPT_P
) -> bytes:
    """32 bytes from a passphrase: scrypt (RFC 7914), by default with the costs of this module."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=KEY_BYTES, n=1 << log_n, r=r, p=p).derive(passphrase)


def derive_key(kind: str, secret: bytes, salt: bytes, purpose: str) -> bytes:
    """The key for one purpose: scrypt first for a passphrase, then HKDF-SHA256 (RFC 5869)."""
    if kind == "passphrase":
        secret = scrypt_key(secret, salt)
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, b"emoinv/" + purpose.encode("ascii") + b"\x01", hashlib.sha256).digest()


def associated(*parts: str | int | bytes) -> bytes:
    """Associated data from parts, each with its length before it, so that no two lists of parts collide."""
    joined = b""
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else str(part).encode() if isinstance(part, int) else part
        joined += struct.pack("<I", len(data)) + data
    return joined


class Seal:
    """Seals bytes under one key, or, for ``None``, only guards them against accident.

    Without a key a SHA-256 of the associated data and the bytes stands before them: it finds damage
    and exchanged rows, but nobody who alters the file on purpose is stopped by it.
    """

    __slots__ = ("_aead",)

    def __init__(self, key: bytes | None) -> None:
        self._aead = None
        if key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._aead = AESGCM(key)

    def close(self, plain: bytes, aad: bytes, nonce: bytes | None = None) -> bytes:
        """Seal `plain` so that it opens only with the same `aad`; a `nonce` given must be fresh and random."""
        if self._aead is None:
            return hashlib.sha256(associated(aad, plain)).digest() + plain
        if nonce is None:
            nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, aad)

    def open(self, sealed: object, aad: bytes) -> bytes:
        """What `close` sealed.

        Raises
        ------
        SealError
            If the key is another, or the bytes or the associated data differ.
        """
        if isinstance(sealed, bytes):
            if self._aead is None:
                if sealed[:32] == hashlib.sha256(associated(aad, sealed[32:])).digest():
                    return sealed[32:]
            elif len(sealed) >= NONCE_BYTES + TAG_BYTES:
                from cryptography.exceptions import InvalidTag

                try:
                    return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
                except InvalidTag:
                    pass
        raise SealError("sealed bytes do not open: the key is another one, or they were altered")
