"""Where in an audio file its recordings lie, and how much of them its headers promise.

libsndfile stops at the length that a header gives or that it estimates. That length is wrong where a
program wrote to a pipe or died, where files were put one after another, and for MP3 without a Xing
header; so every header is compared with what follows it, and mended for the decoder where it misleads.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from typing import BinaryIO, NamedTuple

__all__ = ["Part", "find_parts"]

# Of files that were made to exhaust a reader, what comes behind so many parts or chunks is not looked for, and so long
# a head is not mended.
MOST_PARTS = 10_000
LONGEST_HEAD = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One recording within a file: what the decoder gets is `head`, and then the bytes from `start` to `stop`.

    Parameters
    ----------
    start, stop : int
        Positions in the file.
    head : bytes
        A mended header; empty where the file's own is good.
    counted : int
        Samples that were counted, for a decoder that estimates: the head is needed only where it
        expects fewer. 0 where nobody needs to count.
    promised : float
        How many times as long as what is there the recording is by its header; 1 where all is there.
    note : str
        What is odd about this part, for the user to read.
    """

    start: int
    stop: int
    head: bytes = b""
    counted: int = 0
    promised: float = 1.0
    note: str = ""


def find_parts(file: BinaryIO, size: int) -> list[Part]:
    """The recordings in a file, in order: one, unless files were put one after another.

    Parameters
    ----------
    file : binary file
        Seekable; its position is changed.
    size : int
        In bytes.
    """
    magic = _at(file, 0, 4)
    if magic in _LAYOUTS:
        return _chunked(file, size, magic) or [Part(0, size)]
    if magic in (b".snd", b"dns."):
        return _au(file, size, magic)
    if magic == b"OggS":
        return _ogg(file, size)
    start = _after_id3(file, 0)
    if _at(file, start, 4) == b"fLaC":
        return _flac(file, size)
    return _mp3(file, size, start) or [Part(0, size)]


def _at(file: BinaryIO, position: int, length: int) -> bytes:
    if position >= 2**63:  # by a damaged header
        return b""
    file.seek(position)
    return file.read(length)


def _find(file: BinaryIO, pattern: bytes, start: int, size: int) -> int:
    """The first position of a pattern from `start` on, or `size`."""
    while start < size:
        block = _at(file, start, 1 << 20)
        found = block.find(pattern)
        if found >= 0:
            return start + found
        start += max(1, len(block) - len(pattern) + 1)
    return size


# --- files of chunks: WAV, RF64, AIFF, W64, CAF, and AU ----------------------------------------


class _Layout(NamedTuple):
    """How a family of files is laid out: named chunks, each with its length, one of which is the audio."""

    first: int  # position of the first chunk
    name: int  # length of a chunk's name
    length: str  # format of a chunk's length, which follows the name
    audio: bytes  # name of the chunk that holds the audio
    counted: int = 0  # bytes of a chunk's own header that its length counts
    padding: int = 2  # what chunks are padded to


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", b"data"),
    b"RIFX": _Layout(12, 4, ">I", b"data"),
    b"RF64": _Layout(12, 4, "<I", b"data"),
    b"FORM": _Layout(12, 4, ">I", b"SSND"),
    b"riff": _Layout(40, 16, "<Q", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 24, 8),
    b"caff": _Layout(8, 4, ">Q", b"data", 0, 1),
}


class _Audio(NamedTuple):
    """The audio chunk of a file."""

    begin: int  # position of its first byte
    length: int  # in bytes, by the header
    length_at: int  # where it stands in the header
    length_format: str


def _audio_chunk(file: BinaryIO, start: int, layout: _Layout) -> _Audio | None:
    position = start + layout.first
    long_length, long_at = None, 0
    field = struct.calcsize(layout.length)
    for _ in range(MOST_PARTS):
        header = _at(file, position, layout.name + field)
        if len(header) < layout.name + field:
            break
        (length,) = struct.unpack(layout.length, header[layout.name :])
        begin = position + len(header)
        if header.startswith(b"ds64"):  # of RF64: what does not fit into 32 bits
            (long_length,) = struct.unpack("<Q", _at(file, begin + 8, 8).ljust(8, b"\0"))
            long_at = begin + 8
        if header.startswith(layout.audio):
            if long_length is not None and length == 2**32 - 1:
                return _Audio(begin, long_length, long_at, "<Q")
            return _Audio(begin, max(0, length - layout.counted), position + layout.name, layout.length)
        position = begin + max(0, length - layout.counted)
        position += -(position - start) % layout.padding
    return None


def _chunked(file: BinaryIO, size: int, magic: bytes) -> list[Part]:
    parts: list[Part] = []
    layout, start = _LAYOUTS[magic], 0
    while (audio := _audio_chunk(file, start, layout)) is not None:
        there = size - audio.begin
        end = audio.begin + audio.length
        end += -(end - start) % layout.padding
        behind = _at(file, end, 4) if end < size else b""
        unset = audio.length == 0 and there > 0 and not _is_name(behind)
        if (unset or audio.length > there) and audio.begin - start <= LONGEST_HEAD:
            head = bytearray(_at(file, start, audio.begin - start))
            largest = 2 ** (8 * struct.calcsize(audio.length_format)) - 1
            struct.pack_into(audio.length_format, head, audio.length_at - start, min(there + layout.counted, largest))
            known = not unset and not _is_unknown(audio.length)
            promised = audio.length / max(1, there) if known else 1.0
            parts.append(Part(audio.begin, size, bytes(head), promised=promised))
            break
        if behind == magic and len(parts) < MOST_PARTS:  # another file put behind this one
            parts.append(Part(start, end))
            start = end
            continue
        note = ""
        if len(behind) == 4 and not _is_name(behind):
            note = (
                f"the header gives {audio.length} bytes of audio; {size - end} more follow and are not read: "
                "if they are audio, mend the header with `ffmpeg -ignore_length 1 -i INPUT OUTPUT.wav`"
            )
        parts.append(Part(start, size, note=note))
        break
    return parts


def _is_unknown(length: int) -> bool:
    """Whether a length stands for "not known", as pipes and recorders write it: the largest number, or near it."""
    return any(top - 4352 <= length <= top for top in (2**31, 2**32 - 1, 2**63, 2**64 - 1))


def _is_name(name: bytes) -> bool:
    """Whether four bytes can be a chunk's name."""
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _au(file: BinaryIO, size: int, magic: bytes) -> list[Part]:
    begin, length = struct.unpack(">II" if magic == b".snd" else "<II", _at(file, 4, 8).ljust(8, b"\0"))
    there = size - begin
    known = 0 < there < length and not _is_unknown(length)
    return [Part(0, size, promised=length / there if known else 1.0)]


# --- Ogg and FLAC ------------------------------------------------------------------------------


def _ogg(file: BinaryIO, size: int) -> list[Part]:
    """The links of a chained Ogg file: each begins with a page marked as its first, behind pages that do not."""
    starts: list[int] = []
    position, opening, ended = 0, False, False
    while position < size:
        header = _at(file, position, 27)
        if len(header) < 27 or header[:4] != b"OggS":
            ended = False
            position = _find(file, b"OggS", position + 1, size)
            continue
        begins = bool(header[5] & 2)
        if begins and not opening and len(starts) < MOST_PARTS:
            starts.append(position)
        opening, ended = begins, bool(header[5] & 4)
        lacing = _at(file, position + 27, header[26])
        position += 27 + len(lacing) + sum(lacing)
    if not starts:
        return [Part(0, size)]
    note = "" if ended and position == size else "the file ends without the end mark of Ogg; it may have been cut"
    stops = [*starts[1:], size]
    starts[0] = 0
    return [Part(start, stop, note=note if stop == size else "") for start, stop in zip(starts, stops, strict=True)]


def _flac(file: BinaryIO, size: int) -> list[Part]:
    """The files in a file of FLAC: each begins with its magic and a STREAMINFO block of 34 bytes."""
    starts = [0]
    position = _find(file, b"fLaC", 0, size) + 4
    while (position := _find(file, b"fLaC", position, size)) < size and len(starts) < MOST_PARTS:
        if _at(file, position + 4, 4) in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            starts.append(position)
        position += 4
    return [Part(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True)]


# --- MP3 ---------------------------------------------------------------------------------------

_KBITS = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# A Xing header that counts a few frames less than there are is believed, as decoders do.
_XING_SLACK = 8
# Decoders find their way again over this much that is no frame, but not over much more.
_MP3_JUNK = 256


class _Frame(NamedTuple):
    """The header of a frame of MPEG audio, layer III, read."""

    length: int  # in bytes
    version: int  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate: int
    mono: bool

    def sounds_as(self, other: _Frame) -> bool:
        return self[1:] == other[1:]


@functools.lru_cache(maxsize=4096)
def _parse_frame(header: bytes) -> _Frame | None:
    """The frame that these four bytes begin; None where they begin none, or one of free format."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return None
    hz = _MP3_RATES[version][rate]
    kbits = _KBITS[3 if version == 3 else 2][kbits - 1]
    length = (144000 if version == 3 else 72000) * kbits // hz + (header[2] >> 1 & 1)
    return _Frame(length, version, hz, header[3] >> 6 == 3)


def _frame_at(file: BinaryIO, position: int) -> _Frame | None:
    # The last two bits say how the channels are emphasised, and change nothing here.
    return _parse_frame(_at(file, position, 4))


def _after_id3(file: BinaryIO, position: int) -> int:
    """The position behind the ID3v2 tags that stand at `position`."""
    while (tag := _at(file, position, 10))[:3] == b"ID3" and len(tag) == 10:
        length = functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, tag[6:10], 0)
        position += 10 + length + (10 if tag[5] & 0x10 else 0)
    return position


def _xing(file: BinaryIO, position: int, frame: _Frame) -> tuple[bool, int]:
    """Whether a frame holds no sound but a header (Xing, Info or VBRI), and how many frames that counts; 0 unknown."""
    content = _at(file, position, min(frame.length, 192))
    at = 4 + ((17 if frame.mono else 32) if frame.version == 3 else (9 if frame.mono else 17))
    if content[at : at + 4] in (b"Xing", b"Info") and len(content) >= at + 12:
        flags, count = struct.unpack(">II", content[at + 4 : at + 12])
        return True, count if flags & 1 else 0
    return content[36:40] == b"VBRI", 0


def _info_frame(header: bytes, frame: _Frame, count: int) -> bytes:
    """A frame that holds the number of frames that follow."""
    header = bytes([0xFF, header[1] | 1, 0x50 | header[2] & 0x0C, header[3]])  # no checksum, 40 or 64 kbit/s
    length = _parse_frame(header)
    assert length is not None
    side = (17 if frame.mono else 32) if frame.version == 3 else (9 if frame.mono else 17)
    return (header + bytes(side) + b"Info" + struct.pack(">II", 1, count)).ljust(length.length, b"\0")


def _mp3(file: BinaryIO, size: int, start: int) -> list[Part]:
    """The recordings in a file of MP3, each with a header that counts its frames; none if it is no MP3."""
    parts: list[Part] = []
    position = _next_frame(file, start, size, within=4096)
    while position < size and len(parts) < MOST_PARTS:
        found, position = _mp3_part(file, size, position)
        parts += found
    return parts


def _mp3_part(file: BinaryIO, size: int, begin: int) -> tuple[list[Part], int]:
    """The recording that begins with the frame at `begin`, and the position of the next one or `size`."""
    header = _at(file, begin, 4)
    first = _parse_frame(header)
    assert first is not None
    tagged, claimed = _xing(file, begin, first)
    body = position = stop = begin + first.length if tagged else begin
    count, excess, note = 0, 0, ""
    while position < size:
        frame = _frame_at(file, position)
        if frame is None or not frame.sounds_as(first):
            position = _next_frame(file, position, size)
            frame = _frame_at(file, position)
            if frame is None or not frame.sounds_as(first) or position - stop > _MP3_JUNK:
                break
        if position > body and _xing(file, position, frame)[0]:
            break
        if position + frame.length > size:
            note = "the file ends within a frame; it may have been cut"
            position = stop = size
            break
        if count == claimed:
            excess = position
        count += 1
        position = stop = position + frame.length
    if count == 0:
        return [], position
    samples = 1152 if first.version == 3 else 576  # of a frame
    if not claimed:
        return [Part(body, stop, _info_frame(header, first, count), count * samples, note=note)], position
    if count <= claimed + _XING_SLACK:
        return [Part(begin, stop, note=note)], position
    count -= claimed
    rest = Part(excess, stop, _info_frame(header, first, count), count * samples, note=note)
    return [Part(begin, excess), rest], position


def _next_frame(file: BinaryIO, position: int, size: int, within: int | None = None) -> int:
    """The next position from which two frames alike follow each other, or one ends the file; `size` if there is none.

    Tags are stepped over; further junk only as far as `within`.
    """
    position = _after_id3(file, position)
    limit = size if within is None else min(size, position + within)
    while (position := _find(file, b"\xff", position, limit)) < limit:
        frame = _frame_at(file, position)
        if frame is not None:
            behind = _frame_at(file, position + frame.length)
            if position + frame.length == size or (behind is not None and behind.sounds_as(frame)):
                return position
        position += 1
    return size
