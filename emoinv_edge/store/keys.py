"""Keys and seals: how the profile store and the portable profile file keep bytes secret.

A *seal* is AES-256-GCM (from ``cryptography``) with a random 96-bit nonce::

    sealed = nonce (12 bytes) | ciphertext | tag (16 bytes)

Whatever must not be exchanged for something else (the table, the row, its version, the model's
fingerprint, the schema) goes in as associated data: it is not stored, but a seal opens only with
the same associated data.

A key comes from one of these sources, none of which shows its secret in a ``repr``:

- ``bytes`` of length 32, or a function of no argument that returns them (a keyring, a TPM, a prompt);
- `KeyFile`: 64 hexadecimal digits in a file, made with mode 0600 if it is missing;
- `KeyVariable`: the same digits in an environment variable;
- `Passphrase`: scrypt with N = 2**15, r = 8, p = 3 (32 MiB for a moment, a fraction of a second);
- `PLAINTEXT`: no secrecy. It must be asked for by name; nothing falls back to it.

The rows of a store are sealed by a random data key of its own, which lies in the store, sealed by the
user's key (`StoreKeys`). A leaked key opens everything that it sealed. Python cannot wipe memory: while
the process lives, keys are in its memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import secrets
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import SealError, StoreError
from ..files import clear_drafts, read_regular, write_atomically

__all__ = [
    "KEY_VARIABLE",
    "PLAINTEXT",
    "SCHEMA",
    "KeyFile",
    "KeySource",
    "KeyVariable",
    "Passphrase",
    "Plaintext",
    "Seal",
    "StoreKeys",
    "key_kind",
    "link_new",
]

SCHEMA = 3
KEY_BYTES = 32
MAX_KEY_TEXT = 256
SALT_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 15, 8, 3
KEY_VARIABLE = "EMOINV_STORE_KEY"


class Plaintext:
    """The type of `PLAINTEXT`: profiles are written in the clear because the caller asked for it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PLAINTEXT"


PLAINTEXT = Plaintext()


class Passphrase:
    """A passphrase of at least 8 characters, hidden from ``repr``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"expected the passphrase as str, got {type(text).__name__}")
        if len(text) < 8:
            del text  # a traceback with locals must not show it
            raise ValueError("expected a passphrase of at least 8 characters; choose a longer one")
        self._text = text

    def derive(self, salt: bytes, log_n: int = SCRYPT_LOG_N, r: int = SCRYPT_R, p: int = SCRYPT_P) -> bytes:
        """32 bytes from the passphrase in UTF-8 and a salt, by scrypt (RFC 7914)."""
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=1 << log_n, r=r, p=p)
        return scrypt.derive(self._text.encode("utf-8", "surrogatepass"))

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
        try:
            if path.exists():
                return
        except OSError as error:
            raise StoreError(f"key file {path}: {error.strerror}; give another path for the key") from None
        if path.is_symlink():
            raise StoreError(
                f"key file {path}: is a link to {os.readlink(path)}, where nothing is; bring in the medium that has "
                "the key, or remove the link"
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clear_drafts()
        draft = pathlib.Path(f"{path}.{secrets.token_hex(4)}.part")
        _write_key(draft, secrets.token_bytes(KEY_BYTES), path)
        link_new(draft, path)

    def read(self, suffix: str = "") -> bytes:
        """The 32 bytes of the key, of the file itself or of its neighbour with `suffix`.

        Raises
        ------
        StoreError
            If the file is missing, not a key, no regular file, or another user's or readable by others.
        """
        path = pathlib.Path(f"{self._place()}{suffix}")
        try:
            key = _parsed_key(read_regular(path, MAX_KEY_TEXT, private=True))
        except PermissionError as error:
            hint = f'; or give a secret of your container as the variable {KEY_VARIABLE}="$(cat {path})"'
            raise StoreError(f"key file {path}: {error.strerror}{hint}") from None
        except OSError as error:
            raise StoreError(
                f"key file {path}: {error.strerror}; restore it from a copy, or give the path of the key. "
                "Without the key the profiles cannot be opened: enrol again into a new store"
            ) from None
        if key is None:
            raise _no_key(f"key file {path}")
        return key

    def _place(self) -> str:
        """Where the file is, at the end of all links: a successor must not lie beside a link to another medium."""
        return os.path.realpath(self.path)

    def clear_drafts(self) -> None:
        """Remove the drafts that killed processes left beside the file."""
        clear_drafts(pathlib.Path(self._place()))

    def write_successor(self, key: bytes) -> None:
        """Write the key that is about to replace this one to the neighbour ``<path>.new``."""
        _write_key(pathlib.Path(f"{self._place()}.new"), key, self.path)

    def settle_successor(self, *, promote: bool) -> None:
        """Put ``<path>.new``, if there is one, in the place of the key file, or drop it."""
        with contextlib.suppress(FileNotFoundError):
            if promote:
                os.replace(f"{self._place()}.new", self._place())
            else:
                os.unlink(f"{self._place()}.new")


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
        if self.name not in os.environ:
            raise StoreError(f"environment variable {self.name} is not set; expected 64 hexadecimal digits")
        key = _parsed_key(os.environ[self.name].encode("utf-8", "surrogateescape"))
        if key is None:
            raise _no_key(f"environment variable {self.name}")
        return key


KeySource = bytes | Callable[[], bytes] | KeyFile | KeyVariable | Passphrase | Plaintext


def _parsed_key(text: bytes) -> bytes | None:
    """The key in a text, or None; who raises for that then has no local with a mistyped key for a traceback to show."""
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def _no_key(where: str) -> StoreError:
    return StoreError(f"{where}: expected {2 * KEY_BYTES} hexadecimal digits; make them with `openssl rand -hex 32`")


def _write_key(path: pathlib.Path, key: bytes, of: pathlib.Path | str) -> None:
    try:
        write_atomically(path, f"{key.hex()}\n")
    except OSError as error:
        raise StoreError(f"key file {of}: cannot be written ({error.strerror}); nothing was changed") from None


def link_new(draft: pathlib.Path, path: pathlib.Path) -> None:
    """Give a finished draft its name, unless another process was first: then that one's file counts."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.rename(path)
    draft.unlink(missing_ok=True)


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


def _secrets_of(source: KeySource, salt: bytes) -> Iterator[bytes]:
    """The secrets that may open what `source` sealed, the likeliest first.

    A key file has a second one while a rotation is under way: the key written next to it.
    """
    if isinstance(source, Passphrase):
        yield source.derive(salt)
    elif isinstance(source, KeyFile):
        yield source.read()
        try:
            successor = source.read(".new")
        except StoreError:  # there is none, as a rule
            return
        yield successor
    elif not isinstance(source, Plaintext):
        key = source.read() if isinstance(source, KeyVariable) else source if isinstance(source, bytes) else source()
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {got}; make one with secrets.token_bytes(32)")
        yield key


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
            return hashlib.sha256(_joined(aad, plain)).digest() + plain
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
                if sealed[:32] == hashlib.sha256(_joined(aad, sealed[32:])).digest():
                    return sealed[32:]
            elif len(sealed) >= NONCE_BYTES + TAG_BYTES:
                from cryptography.exceptions import InvalidTag

                try:
                    return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
                except InvalidTag:
                    pass
        raise SealError("sealed bytes do not open: the key is another one, or they were altered")


def _joined(*parts: str | int | bytes) -> bytes:
    """Parts with the length of each before it, so that no two lists of parts collide."""
    joined = b""
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8")
        joined += struct.pack("<I", len(data)) + data
    return joined


@dataclasses.dataclass(frozen=True, slots=True)
class StoreKeys:
    """The key that seals the rows of a store, as the user's key opened it.

    `store_id`, `kind`, `salt` and `sealed` are the columns of the store that it lies in; `transform_secret`
    is empty but in a store of schema 2.
    """

    schema: int
    store_id: bytes
    kind: str
    salt: bytes
    sealed: bytes
    data_key: bytes = dataclasses.field(repr=False)
    transform_secret: bytes = dataclasses.field(default=b"", repr=False)

    @classmethod
    def fresh(cls, source: KeySource, store_id: bytes) -> StoreKeys:
        """A new data key, sealed by the user's key with a new salt."""
        kind, salt, data_key = key_kind(source), secrets.token_bytes(SALT_BYTES), secrets.token_bytes(KEY_BYTES)
        seal = next(_wrapping_seals(source, salt))
        sealed = seal.close(data_key, _bound_to(SCHEMA, store_id, "keys", kind))
        return cls(SCHEMA, store_id, kind, salt, sealed, data_key)

    @classmethod
    def opened(
        cls, source: KeySource, schema: int, store_id: Any, kind: Any, salt: Any, sealed: Any
    ) -> tuple[StoreKeys, int]:
        """The keys in these columns of a store, and which of the source's secrets opened them (0 or 1).

        Raises
        ------
        SealError
            If the user's key is another, or of another kind, or the columns were altered.
        """
        if not (isinstance(store_id, bytes) and isinstance(salt, bytes) and kind == key_kind(source)):
            raise SealError("the kind of key differs")
        aad = _bound_to(schema, store_id, "keys", kind)
        for place, seal in enumerate(_wrapping_seals(source, salt)):
            with contextlib.suppress(SealError):
                plain = seal.open(sealed, aad)
                return cls(schema, store_id, kind, salt, sealed, plain[:KEY_BYTES], plain[KEY_BYTES:]), place
        raise SealError("the key differs")

    @property
    def columns(self) -> tuple[bytes, str, bytes, bytes]:
        """The columns of the store that they lie in."""
        return self.store_id, self.kind, self.salt, self.sealed

    def seal(self) -> Seal:
        """What opens and closes the rows of the store."""
        return Seal(None if self.kind == "plaintext" else self.data_key)

    def bound_to(self, *where: str | int) -> bytes:
        """The associated data of what lies in this place of the store."""
        return _bound_to(self.schema, self.store_id, *where)


def _bound_to(schema: int, store_id: bytes, *where: str | int) -> bytes:
    return _joined("emoinv store", schema, store_id, *where)


def _wrapping_seals(source: KeySource, salt: bytes) -> Iterator[Seal]:
    """The seals of a store's keys that the user's key gives, the likeliest first."""
    if isinstance(source, Plaintext):
        yield Seal(None)
        return
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    for secret in _secrets_of(source, salt):
        yield Seal(HKDF(SHA256(), length=KEY_BYTES, salt=salt, info=b"emoinv/wrap").derive(secret))
