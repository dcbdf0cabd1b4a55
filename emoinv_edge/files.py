"""Files written atomically, and files read that might have been put there by somebody else.

After a crash there is the old file or the new one, never a part of one; a draft that a killed process left is removed
by the next writer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from pathlib import Path

__all__ = ["clear_drafts", "read_regular", "write_atomically"]

DRAFT_AGE_S = 600.0  # nobody takes longer to write a draft


def write_atomically(path: str | os.PathLike[str], content: bytes | str, mode: int = 0o600) -> None:
    """Write a file by way of a draft beside it, which is synced to the medium and then takes its place.

    A link at `path` is replaced, not followed.

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
    clear_drafts(path)
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


def clear_drafts(path: Path) -> None:
    """Remove the drafts of this file that killed processes left: those that are ours and of long ago.

    A draft is the file's name, random hexadecimal digits and ``.part`` or ``.tmp`` (and what SQLite puts beside that).
    """
    name = re.compile(re.escape(path.name) + r"(\.new)?(\.[0-9a-f]{8,16}(\.part|\.tmp(-wal|-shm|-journal)?))+")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) is None:
                continue
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                old = time.time() - about.st_mtime > DRAFT_AGE_S
                if old and stat.S_ISREG(about.st_mode) and _is_ours(about, root_too=False):
                    os.unlink(entry.path)


def read_regular(path: str | os.PathLike[str], limit: int, *, private: bool = False) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused at once rather than waited for.

    Parameters
    ----------
    path : path
    limit : int
        Bytes that it may have at most.
    private : bool
        Refuse a file that belongs to a user other than this process's and root, or that others can read or write.

    Raises
    ------
    OSError
        If it cannot be read, or is refused; `strerror` gives the reason.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with open(os.open(path, flags), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
        if private and not _is_ours(about, root_too=True):
            raise PermissionError(errno.EPERM, f"belongs to another user ({about.st_uid})", os.fspath(path))
        exposed = _exposed(path, about) if private else ""
        if exposed:
            raise PermissionError(errno.EPERM, exposed, os.fspath(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes", os.fspath(path))
    return content


def _exposed(path: str | os.PathLike[str], about: os.stat_result) -> str:
    """Why a secret file's mode lets others at it, with the cure; empty if it does not, or was not ours to choose.

    A container or service manager gives secrets as files of root, or on read-only mounts, whose mode nobody here
    can change: such a file may be read by others, as whoever runs this machine decided, but not written by them.
    """
    mode = stat.S_IMODE(about.st_mode)
    if os.name != "posix" or not mode & 0o077:
        return ""
    given = about.st_uid == 0 != os.geteuid() or bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    if given and not mode & 0o022:
        return ""
    cure = "let nobody else write it" if given else f"run chmod 600 {os.fspath(path)}"
    return f"mode {mode:04o} lets other users at the key; {cure}"


def _is_ours(about: os.stat_result, *, root_too: bool) -> bool:
    if os.name != "posix":
        return True
    return about.st_uid == os.geteuid() or (root_too and about.st_uid == 0)
