"""Decoding: a file, a pipe or a file object -> blocks of samples, read to their end.

Nothing is held but one block, except for what comes through a pipe, as decoders move about in a
file. Where less comes than the headers promise, a note reports it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from .containers import Part, find_parts
from .errors import AudioError

__all__ = ["Source", "decode", "shown"]

Source = str | os.PathLike[str] | BinaryIO

BLOCK_SAMPLES = 1 << 16
# What a header promises and what comes may differ by this much; encoders pad and trim.
SLACK_S = 0.1
# Of a pipe, for each second of the longest duration; 48 kHz in stereo and 16 bits.
PIPE_BYTES_PER_S = 192_000
PIPE_BYTES_AT_LEAST = 1 << 26
EXPECTED = "expected an audio file that libsndfile reads (WAV, FLAC, OGG, MP3)"
CONVERT = "convert it, e.g. `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`"
TERMINAL = "expected a recording, got a terminal; pipe one in, e.g. `cat FILE | emoinv verify NAME -`"
# Containers that PyAV may open: those that hold sound themselves, none that refers to other files or addresses.
MEDIA_FORMATS = (
    "aac,ac3,amr,amrnb,amrwb,ape,asf,avi,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,tta,wav,wv"
)


def shown(source: object) -> str:
    """A source as error messages name it: undecodable bytes and control characters escaped."""
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, "name", None)
        return shown(name) if isinstance(name, str) and name else f"<{type(source).__name__}>"
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text == "-":
        return "<stdin>"
    with contextlib.suppress(UnicodeEncodeError):
        text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def decode(
    source: Source, max_duration_s: float, notes: list[str]
) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
    """Decode a recording block by block.

    Parameters
    ----------
    source : path, "-" for standard input, or binary file
        A binary file is read from its position to its end and left open.
    max_duration_s : float
        What is longer is refused.
    notes : list of str
        What was missing is appended, once all was read.

    Yields
    ------
    sample_rate : int
    block : ndarray, shape (samples, channels), float32
        Rate and channels may change between blocks, where files were put one after another.

    Raises
    ------
    AudioError
        If it cannot be read, is no audio, or is too long. The message does not name the source.
    """
    if not max_duration_s > 0.0:
        raise ValueError(f"expected max_duration_s above 0, got {max_duration_s!r}; pass e.g. 7200")
    try:
        with _opened(source, max_duration_s) as (file, name):
            yield from _decode_file(file, name, _Count(max_duration_s), notes)
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # a medium that fails, a file object that was closed
        raise AudioError(f"cannot be read any further ({error}); check the medium or the connection") from error


def _decode_file(
    file: BinaryIO, name: str | bytes | None, count: _Count, notes: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise AudioError("the file is empty (0 bytes); record or copy it again")
    parts = find_parts(file, size)
    damage: list[str] = []
    why = ""
    for part in parts:
        try:
            yield from _decode_part(file, name if (part.start, part.stop) == (0, size) else None, part, count)
        except _Refused as refused:
            why = str(refused)
            damage.append(_damage(count, why))
    if why and count.seconds == 0.0:
        if _looks_like_text(file):
            raise AudioError(f"{EXPECTED}, but the file holds text; {CONVERT}")
        damage = []
        try:
            yield from _decode_media(file, count, why)
        except _Refused as refused:
            damage.append(_damage(count, str(refused)))
    if count.seconds == 0.0:
        raise AudioError(f"expected some samples, got an empty recording{'; '.join(['', *damage])}; record it again")
    notes += damage + (count.shortfall() or [part.note for part in parts if part.note])


def _damage(count: _Count, why: str) -> str:
    return f"damaged at {count.seconds:.2f} s: what follows there was not read ({why})"


class _Refused(Exception):
    """A decoder cannot read this, or no further."""


class _Count:
    """How many seconds came, how many were promised, and how many may come."""

    def __init__(self, most_s: float) -> None:
        self.seconds = self.promised = 0.0
        self._most_s = most_s

    def promise(self, seconds: float, times: float = 1.0) -> None:
        """A header promises `seconds`, and more by `times` were meant to be."""
        self._check(self.promised + seconds, "by its header ")
        self.promised += seconds * times

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self._check(self.seconds)

    def _check(self, seconds: float, by: str = "") -> None:
        if seconds > self._most_s:
            raise AudioError(
                f"expected at most {self._most_s:g} s of audio, got {by}{seconds:.0f} s or more; cut it, e.g. "
                "`ffmpeg -i INPUT -t 600 OUTPUT.wav`, or allow more with max_duration_s (--max-duration)"
            )

    def shortfall(self) -> list[str]:
        if self.promised - self.seconds <= SLACK_S:
            return []
        return [
            f"the header promises {self.promised:.2f} s, but only {self.seconds:.2f} s are there; "
            "the recording was cut or damaged, or is still being written"
        ]


# --- decoders ----------------------------------------------------------------------------------


def _soundfile() -> Any:
    try:
        import soundfile  # here, not above: the library also works on arrays alone
    except OSError as error:  # raised by the import itself when the shared library is missing
        raise AudioError(
            f"libsndfile is missing ({error}); install it with `pip install --force-reinstall soundfile`, "
            "or `apt install libsndfile1`"
        ) from error
    return soundfile


def _decode_part(
    file: BinaryIO, name: str | bytes | None, part: Part, count: _Count
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decode one part of a file with libsndfile, which opens it by `name` where that is given and no head is needed."""
    soundfile = _soundfile()
    view = _View(file, part.start, part.stop, b"" if part.counted else part.head, quiet=True)
    try:
        sound = soundfile.SoundFile(view if name is None or (part.head and not part.counted) else name)
        if sound.frames < part.counted:
            sound.close()
            view = _View(file, part.start, part.stop, part.head, quiet=True)
            sound = soundfile.SoundFile(view)
        with sound:
            sound.seekable = lambda: False  # else soundfile seeks after every block, which not every decoder stands
            rate, channels = sound.samplerate, sound.channels
            if part.counted or sound.frames < 2**62:  # else the length is unknown
                count.promise((part.counted or sound.frames) / rate, part.promised)
            failure = None
            while failure is None:
                block = np.zeros((max(1, BLOCK_SAMPLES // channels), channels), np.float32)
                try:
                    block = sound.read(out=block)
                except soundfile.SoundFileError as error:  # behind what was decoded there are zeros
                    failure = error
                    block = block[: int(np.flatnonzero(block.any(axis=1)).max(initial=-1)) + 1]
                if not len(block):
                    break
                count.add(len(block) / rate)
                yield rate, block
            if failure is not None:
                raise failure
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        view.reraise()
        raise _Refused(getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")) from error
    view.reraise()


def _decode_media(file: BinaryIO, count: _Count, why: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decode with PyAV what libsndfile does not know."""
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{EXPECTED}, but {why}; {CONVERT}, "
            "or, for M4A, WebM, AMR and others, install PyAV: `pip install 'emoinv-edge[media]'`"
        ) from error
    view = _View(file, 0, file.seek(0, os.SEEK_END), quiet=True)  # PyAV prints the exceptions of its file, too
    options = {"format_whitelist": MEDIA_FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(view, "r", container_options=options) as container:
            if not container.streams.audio:
                raise AudioError(f"the file holds no sound; {CONVERT}")
            stream = container.streams.audio[0]
            if stream.duration is not None and stream.time_base is not None:
                count.promise(float(stream.duration * stream.time_base))
            elif container.duration is not None:
                count.promise(container.duration / av.time_base)
            packed = av.AudioResampler(format="flt")  # rate and channels stay
            for frame in itertools.chain(container.decode(stream), [None]):
                for out in packed.resample(frame):
                    count.add(out.samples / out.sample_rate)
                    yield out.sample_rate, out.to_ndarray().reshape(out.samples, -1).astype(np.float32, copy=False)
        view.reraise()
    except (av.error.FFmpegError, OSError, ValueError) as error:
        view.reraise()
        if isinstance(error, AudioError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        if count.seconds > 0.0:
            raise _Refused(reason) from error
        raise AudioError(f"{EXPECTED}, or FFmpeg, but {why}, and {reason}; {CONVERT}") from error


# --- where the bytes come from -----------------------------------------------------------------


class _View(io.RawIOBase):
    """Part of a binary file as a file of its own, behind another head.

    With `quiet`, for libsndfile, which calls from C where an exception would be lost, a failure
    looks like the end, and `reraise` raises it.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int, head: bytes = b"", quiet: bool = False) -> None:
        self._file, self._start, self._head, self._quiet = file, start, head, quiet
        self._size = len(head) + stop - start
        self._position = 0
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer)
        length = max(0, min(len(target), self._size - self._position))
        if self._position < len(self._head):
            data = self._head[self._position : self._position + length]
        else:
            try:
                self._file.seek(self._start + self._position - len(self._head))
                data = self._file.read(length)
            except Exception as error:
                if not self._quiet:
                    raise
                self._error, data = self._error or error, b""
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def _opened(source: Source, max_duration_s: float) -> Iterator[tuple[BinaryIO, str | bytes | None]]:
    """A seekable binary file to read from its start, and the name that libsndfile can open by itself, if any."""
    if not isinstance(source, (str, os.PathLike)):
        yield _seekable(source, max_duration_s), None
    elif os.fspath(source) == "-":
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None or sys.stdin.isatty():
            raise AudioError(TERMINAL)
        yield _seekable(stdin, max_duration_s), None
    else:
        try:
            if os.path.isdir(source):
                raise AudioError("expected an audio file, got a folder; name one file")
            file = open(source, "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise AudioError("no such file; check the path") from None
        except PermissionError as error:
            raise AudioError(f"cannot be read ({error.strerror}); check its permissions") from error
        except OSError as error:
            raise AudioError(f"cannot be read ({error.strerror or error}); check the path") from error
        except ValueError as error:  # a NUL or what no file name can be encoded from; AudioError is one too
            raise error if isinstance(error, AudioError) else AudioError(f"no file name ({error})") from error
        with file:
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(kind):
                path = Path(source)
                yield file, str(path) if os.name == "nt" else os.fsencode(path)
            elif stat.S_ISBLK(kind):
                raise AudioError("expected an audio file, got a device; name one file")
            elif os.isatty(file.fileno()):
                raise AudioError(TERMINAL)
            else:
                yield _held(file, max_duration_s), None


def _seekable(file: BinaryIO, max_duration_s: float) -> BinaryIO:
    """What is left of a binary file, as a seekable file; a pipe is held in memory."""
    probe: Any = file.read(0) if hasattr(file, "read") else None
    if not isinstance(probe, (bytes, bytearray)):
        if hasattr(probe, "close"):
            probe.close()  # a coroutine that nobody awaits
        raise TypeError(
            f"expected a path or a binary file, got {type(file).__name__}; open files with open(path, 'rb'), "
            "wrap bytes in io.BytesIO, and give an upload's underlying file"
        )
    try:
        start = file.tell()
        stop = file.seek(0, os.SEEK_END)
    except (OSError, ValueError, AttributeError):  # io.UnsupportedOperation is both of the first
        return _held(file, max_duration_s)
    if 0 < start == stop:
        raise AudioError("the file object stands at its end; rewind it with .seek(0)")
    return cast(BinaryIO, _View(file, start, stop))


def _held(file: BinaryIO, max_duration_s: float) -> BinaryIO:
    held = io.BytesIO()
    limit = max(PIPE_BYTES_AT_LEAST, round(max_duration_s * PIPE_BYTES_PER_S))
    try:
        while data := file.read(1 << 20):
            held.write(data)
            if held.tell() > limit:
                raise AudioError(
                    f"expected at most {limit >> 20} MB through a pipe, got more; give a file's path instead, "
                    "or send 16 kHz and one channel, e.g. `ffmpeg -i INPUT -ac 1 -ar 16000 -f wav -`"
                )
    except OSError as error:
        raise AudioError(f"the pipe cannot be read ({error})") from error
    return held


def _looks_like_text(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(512)
    if b"\0" in head:
        return False
    text = head.decode("utf-8", errors="replace")
    return sum(character.isprintable() or character.isspace() for character in text) > 0.95 * len(text)
