"""Recordings made for the tests of what comes in: every container that libsndfile writes, and ways to spoil them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

from emoinv_edge.audio import read_audio

RATE = 16000
SECONDS = 4.0


def sound(seconds: float = SECONDS, rate: int = RATE, hz: float = 300.0) -> np.ndarray:
    """A tone that never holds still, so that every part of it is of its own."""
    time = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2.0 * np.pi * (hz + 200.0 * time / max(seconds, 1.0)) * time)
    return (0.3 * (0.6 + 0.4 * np.sin(9.0 * time)) * wave).astype(np.float32)


def encoded(kind: str, subtype: str | None = None, wave: np.ndarray | None = None, rate: int = RATE) -> bytes:
    """A file of this kind, as bytes."""
    file = io.BytesIO()
    soundfile.write(file, sound(rate=rate) if wave is None else wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


def read(content: bytes, tmp_path: Path, name: str = "clip") -> tuple[np.ndarray, tuple[str, ...]]:
    """Read these bytes as a file and from memory, which must be the same."""
    path = tmp_path / name
    path.write_bytes(content)
    waveform, notes = read_audio(path)
    again, same_notes = read_audio(io.BytesIO(content))
    assert np.array_equal(waveform, again) and notes == same_notes
    return waveform, notes


def with_data_length(content: bytes, length: int) -> bytes:
    """A WAV file that gives another length of its audio."""
    at = content.index(b"data") + 4
    return content[:at] + struct.pack("<I", length) + content[at + 4 :]


def without_length(flac: bytes) -> bytes:
    """A FLAC file as an encoder writes it to a pipe: 36 bits of the number of samples are 0."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


def mp3_frames(content: bytes) -> list[bytes]:
    """The frames of an MP3 file of MPEG 2 at 16 kHz, the header that counts them first."""
    kbits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    frames, at = [], content.index(b"\xff\xf3")
    while content[at : at + 2] == b"\xff\xf3":
        length = 72000 * kbits[content[at + 2] >> 4] // RATE + (content[at + 2] >> 1 & 1)
        frames.append(content[at : at + length])
        at += length
    return frames


def noise(seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    """White noise, which no codec makes small: any part of a file holds as much of it."""
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * rate)).astype(np.float32)
