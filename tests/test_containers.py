"""Recordings are read to their end whatever their headers say, and what is missing is said."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RATE, SECONDS, encoded, mp3_frames, noise, read, sound, with_data_length, without_length

from emoinv_edge.audio import read_audio, read_channels
from emoinv_edge.errors import AudioError


def seconds_in(notes: tuple[str, ...]) -> tuple[float, float]:
    """The lengths, promised and there, that the notes give."""
    found = re.search(r"promises ([\d.]+) s, but only ([\d.]+) s", "; ".join(notes))
    assert found, notes
    return float(found[1]), float(found[2])


# --- lengths that a header does not know -------------------------------------------------------


@pytest.mark.parametrize("length", [0, 2**32 - 1, 2**31 - 1, 2**31, 0x7FFFF000, 2**32 - 36])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_that_was_written_to_a_pipe_is_read_whole(tmp_path, length, subtype):
    whole = encoded("WAV", subtype)
    waveform, notes = read(with_data_length(whole, length), tmp_path)
    assert np.array_equal(waveform, read_audio(io.BytesIO(whole))[0]) and notes == ()


@pytest.mark.parametrize("kind", ["W64", "CAF", "AU", "AIFF", "RF64"])
def test_other_files_without_a_length_are_read_whole(tmp_path, kind):
    whole = encoded(kind, "PCM_16")
    content = bytearray(whole)
    for name, at, length in {
        "W64": [(b"data\xf3\xac", 16, b"\xff" * 8)],
        "CAF": [(b"data", 4, b"\xff" * 8)],
        "AU": [(b".snd", 8, b"\xff" * 4)],
        "AIFF": [(b"SSND", 4, bytes(4)), (b"COMM", 10, bytes(4)), (b"FORM", 4, bytes(4))],
        "RF64": [(b"ds64", 16, b"\xff" * 8)],
    }[kind]:
        position = content.index(name) + at
        content[position : position + len(length)] = length
    waveform, notes = read(bytes(content), tmp_path)
    expected = read_audio(io.BytesIO(whole))[0]
    assert np.array_equal(waveform[: len(expected)], expected) and len(waveform) - len(expected) < 64 and notes == ()


@pytest.mark.skipif(os.name == "nt", reason="the file has a hole")
def test_a_huge_head_is_not_held_to_mend_it(tmp_path):
    whole = encoded("WAV", "PCM_16")
    path = tmp_path / "clip.wav"
    with path.open("wb") as file:
        file.write(whole[:12] + b"JUNK" + struct.pack("<I", 2**31))
        file.seek(2**31, os.SEEK_CUR)
        file.write(with_data_length(whole, 2**32 - 1)[12:])
    assert len(read_audio(path)[0]) == SECONDS * RATE


@pytest.mark.parametrize("chunk", [b"JUNK\0\0\0\0", b"RIFF\0\0\0\0"])
def test_endless_empty_chunks_are_refused_at_once(chunk):
    with pytest.raises(AudioError):
        read_audio(io.BytesIO(b"RIFF\xff\xff\xff\x7fWAVE" + chunk * 200_000))


def test_an_empty_wav_stays_empty(tmp_path):
    for tail in (b"", b"LIST\x04\0\0\0INFO"):
        path = tmp_path / "clip.wav"
        path.write_bytes(encoded("WAV", "PCM_16", np.zeros(0, np.float32)) + tail)
        with pytest.raises(AudioError, match="empty recording"):
            read_audio(path)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_that_was_written_to_a_pipe_is_read_whole(tmp_path, subtype):
    whole = encoded("FLAC", subtype)
    waveform, notes = read(without_length(whole), tmp_path)
    assert np.array_equal(waveform, read_audio(io.BytesIO(whole))[0]) and notes == ()


@pytest.mark.parametrize("padding", [b"", b"ID3\x04\0\0\0\0\x02\x10" + bytes(272), bytes(500)])
def test_an_mp3_whose_frames_nobody_counted_is_read_whole(tmp_path, padding):
    whole = encoded("MP3", wave=np.concatenate([sound(2.0), 0.001 * sound(6.0)]))
    waveform, notes = read(padding + b"".join(mp3_frames(whole)[1:]), tmp_path)
    assert abs(len(waveform) / RATE - 8.0) < 0.15 and notes == ()


def test_an_mp3_of_constant_bit_rate_needs_no_count(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, sound(), RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    frames = mp3_frames(file.getvalue())[1:]
    waveform, notes = read(b"".join(frames), tmp_path)
    assert len(waveform) == 576 * len(frames) and notes == ()


# --- files put one after another ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [
        [("OGG", "VORBIS"), ("OGG", "VORBIS")],
        [("OGG", "OPUS"), ("OGG", "OPUS"), ("OGG", "OPUS")],
        [("OGG", "VORBIS"), ("OGG", "OPUS")],
        [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("FLAC", "PCM_16")],
        [("MP3", None), ("MP3", None)],
        [("WAV", "PCM_16"), ("WAV", "FLOAT")],
        [("AIFF", "PCM_16"), ("AIFF", "PCM_24")],
        [("CAF", "PCM_16"), ("CAF", "PCM_16")],
        [("W64", "PCM_16"), ("W64", "PCM_16")],
    ],
    ids=lambda kinds: "+".join(f"{kind}/{subtype}" for kind, subtype in kinds),
)
def test_files_put_one_after_another_are_all_read(tmp_path, kinds):
    each = [encoded(kind, subtype, sound(hz=300.0 + 200.0 * n)) for n, (kind, subtype) in enumerate(kinds)]
    waveform, notes = read(b"".join(each), tmp_path)
    expected = np.concatenate([read_audio(io.BytesIO(content))[0] for content in each])
    assert np.array_equal(waveform, expected) and notes == ()


def test_an_uncounted_flac_in_front_hides_nothing(tmp_path):
    whole = encoded("FLAC", "PCM_16")
    waveform, _ = read(without_length(whole) + whole, tmp_path)
    assert np.array_equal(waveform, np.tile(read_audio(io.BytesIO(whole))[0], 2))


def test_mp3_frames_behind_the_counted_ones_are_read(tmp_path):
    whole = encoded("MP3")
    waveform, notes = read(whole + b"".join(mp3_frames(whole)[1:]), tmp_path)
    assert abs(len(waveform) / RATE - 2 * SECONDS) < 0.2 and notes == ()


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_the_rate_may_change_between_files(tmp_path, kind):
    each = [encoded(kind), encoded(kind, wave=sound(rate=44100), rate=44100)]
    waveform, notes = read(b"".join(each), tmp_path)
    assert np.array_equal(waveform, np.concatenate([read_audio(io.BytesIO(content))[0] for content in each]))
    assert notes == ("resampled from 44100 to 16000 Hz",)


def test_the_number_of_channels_may_change_where_they_are_mixed(tmp_path):
    stereo = np.stack([sound(), 0.5 * sound()], axis=1)
    content = encoded("FLAC", "PCM_16") + encoded("FLAC", "PCM_16", stereo)
    assert len(read(content, tmp_path)[0]) == 2 * SECONDS * RATE
    with pytest.raises(AudioError, match=r"parts have 1 and 2 channels.*channel=1"):
        read_channels(io.BytesIO(content))
    assert len(read_audio(io.BytesIO(content), channel=1)[0]) == 2 * SECONDS * RATE


# --- codecs that cannot be wound back ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        (kind, subtype)
        for kind in ("WAV", "AU", "W64", "AIFF")
        for subtype in ("GSM610", "IMA_ADPCM", "MS_ADPCM", "G721_32", "NMS_ADPCM_32", "ALAW")
        if soundfile.check_format(kind, subtype)
    ],
)
def test_telephone_codecs_are_read_whole(tmp_path, kind, subtype):
    waveform, notes = read(encoded(kind, subtype, sound(rate=8000), 8000), tmp_path)
    assert abs(len(waveform) / RATE - SECONDS) < 0.15
    assert notes == ("resampled from 8000 to 16000 Hz",)


# --- what is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "GSM610"),
        ("WAV", "IMA_ADPCM"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_24"),
        ("AU", "FLOAT"),
        ("W64", "PCM_16"),
        ("CAF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("MP3", None),
    ],
)
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_a_file_that_was_cut_is_read_and_both_lengths_are_said(tmp_path, kind, subtype, kept):
    rate = 8000 if subtype == "GSM610" else RATE
    whole = encoded(kind, subtype, noise(rate=rate), rate)
    waveform, notes = read(whole[: round(kept * len(whole))], tmp_path)
    promised, there = seconds_in(notes)
    assert promised == pytest.approx(SECONDS, abs=0.1)
    assert there == pytest.approx(len(waveform) / RATE, abs=0.01) == pytest.approx(kept * SECONDS, abs=0.4)


@pytest.mark.parametrize("times", [1.5, 3.0, 1000.0])
def test_a_wav_that_claims_more_than_there_is_reports_both_lengths(tmp_path, times):
    whole = encoded("WAV", "PCM_16")
    waveform, notes = read(with_data_length(whole, round(times * SECONDS * RATE) * 2), tmp_path)
    assert np.array_equal(waveform, read_audio(io.BytesIO(whole))[0])
    assert seconds_in(notes) == (times * SECONDS, SECONDS)


def test_a_wav_that_claims_less_than_there_is_reports_it_and_the_cure_works(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(with_data_length(encoded("WAV", "PCM_16"), RATE))
    waveform, notes = read_audio(path)
    assert len(waveform) == RATE // 2
    assert re.search("header gives 16000 bytes of audio; 112000 more follow.*-ignore_length 1", notes[0])
    if shutil.which("ffmpeg"):
        cure = re.search("`(ffmpeg .*)`", notes[0])[1].split()
        mended = str(tmp_path / "mended.wav")
        command = [{"INPUT": str(path), "OUTPUT.wav": mended}.get(word, word) for word in cure]
        subprocess.run([*command, "-loglevel", "error"], check=True)
        assert len(read_audio(mended)[0]) == SECONDS * RATE


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_was_cut_is_reported(tmp_path, subtype):
    whole = encoded("OGG", subtype, noise())
    waveform, notes = read(whole[: 2 * len(whole) // 3], tmp_path)
    assert 0.2 * SECONDS < len(waveform) / RATE < SECONDS
    assert notes == ("the file ends without the end mark of Ogg; it may have been cut",)


def test_an_uncounted_mp3_that_was_cut_is_reported(tmp_path):
    frames = mp3_frames(encoded("MP3", wave=np.concatenate([sound(2.0), 0.001 * sound(2.0)])))[1:]
    assert "ends within a frame" in read(b"".join(frames)[:-20], tmp_path)[1][-1]


def test_damage_in_the_middle_of_a_flac_is_said_with_its_place(tmp_path):
    whole = bytearray(encoded("FLAC", "PCM_16", noise()))
    at = len(whole) // 2
    whole[at : at + 300] = bytes(range(256)) + bytes(44)
    waveform, notes = read(bytes(whole), tmp_path)
    assert 1.0 < len(waveform) / RATE < 3.0
    assert notes[0].startswith(f"damaged at {len(waveform) / RATE:.2f} s")
    assert seconds_in(notes)[0] == SECONDS


def test_junk_between_mp3_frames_hides_nothing(tmp_path):
    frames = mp3_frames(encoded("MP3"))[1:]
    junk = np.random.default_rng(0).integers(0, 255, 5000, np.uint8).tobytes()
    waveform, _ = read(b"".join(frames[:50]) + junk + b"".join(frames[50:]) + junk, tmp_path)
    assert abs(len(waveform) / RATE - SECONDS) < 0.3


# --- damage of any kind ------------------------------------------------------------------------

WHOLE = {kind: encoded(kind, wave=sound(0.5)) for kind in ("WAV", "RF64", "W64", "CAF", "AIFF", "FLAC", "OGG", "MP3")}


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    keep=st.floats(0.0, 1.0),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    behind=st.sampled_from([b"", *WHOLE.values(), b"\xff\xf3" * 20, b"OggS" * 9, b"fLaC" * 5]),
)
def test_damaged_files_never_do_worse_than_an_audio_error(kind, keep, changes, behind):
    content = bytearray(WHOLE[kind])
    for at, byte in changes:
        content[at % len(content)] = byte
    content = content[: round(keep * len(content))] + behind
    try:
        waveform, _ = read_audio(io.BytesIO(content), max_duration_s=60)
    except AudioError:
        return
    assert waveform.dtype == np.float32 and np.abs(waveform).max(initial=0.0) <= 1.0
