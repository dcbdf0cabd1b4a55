"""Files written atomically: after a crash there is the old file or the new one, never a part of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: bytes | str, mode: int = 0o600) -> None:
    """Write a file by way of a draft beside it, which is synced to the medium and then takes its place.

    Parameters
    ----------
    path : path
    content : bytes or str
        A str is written as UTF-8.
    mode : int
        Permissions of the new file, less the process's umask; by default its owner's alone.

    Raises
    ------
    OSError
        If the file cannot be written; then it is as it was, and no draft stays.
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with open(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
