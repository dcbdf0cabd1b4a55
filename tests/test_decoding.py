"""Files, pipes and file objects give the same recording, within a bound of memory, and errors that name them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import RATE, SECONDS, encoded, mp3_frames, noise, read, sound, with_data_length, without_length

from emoinv_edge.audio import read_audio, read_blocks, read_channels, to_mono
from emoinv_edge.errors import AudioError

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="files and pipes as POSIX has them")


# --- a longest duration, and memory ------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        lambda: encoded("WAV", "PCM_16"),
        lambda: encoded("FLAC", "PCM_16"),
        lambda: without_length(encoded("FLAC", "PCM_16")),
        lambda: encoded("OGG", "OPUS"),
        lambda: b"".join(mp3_frames(encoded("MP3"))[1:]),
        lambda: encoded("WAV", "PCM_16", sound(1.5)) * 3,
    ],
    ids=["WAV", "FLAC", "FLAC of no length", "Ogg", "MP3 without a count", "three WAV"],
)
def test_a_longest_duration_is_kept_and_the_cure_works(content):
    content = content()
    with pytest.raises(AudioError, match=r"at most 3 s of audio.*max_duration_s"):
        read_audio(io.BytesIO(content), max_duration_s=3)
    assert len(read_audio(io.BytesIO(content), max_duration_s=5)[0]) > 3 * RATE


def test_a_claim_of_two_to_the_36_samples_is_refused_by_the_header():
    flac = bytearray(encoded("FLAC", "PCM_16"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    with pytest.raises(AudioError, match="at most 7200 s of audio, got by its header 4294967 s or more"):
        read_audio(io.BytesIO(flac))


@POSIX
def test_a_sparse_file_of_four_gigabytes_is_refused_by_its_header(tmp_path):
    path = tmp_path / "sparse.wav"
    with path.open("wb") as file:
        file.write(with_data_length(encoded("WAV", "PCM_16"), 2**32 - 5000))
        file.truncate(2**32 - 4956)
    with pytest.raises(AudioError, match=r"at most 7200 s.*134218 s or more"):
        read_audio(path)


@pytest.mark.parametrize("most", [0, -1.0, float("nan")])
def test_a_senseless_longest_duration_is_refused(most):
    with pytest.raises(ValueError, match="max_duration_s above 0"):
        read_audio(io.BytesIO(encoded("WAV")), max_duration_s=most)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory as Linux reports it")
@pytest.mark.parametrize(
    ("channels", "minutes", "rate", "most_mb"),
    [(1, 60, 16000, 270), (8, 20, 16000, 115), (2, 20, 48000, 115)],
)
def test_memory_is_that_of_the_result(tmp_path, channels, minutes, rate, most_mb):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", rate, channels) as file:
        minute = np.full((60 * rate, channels), 0.01, np.float32)
        for _ in range(minutes):
            file.write(minute)
    code = (
        "import resource, soundfile, soxr; from emoinv_edge.audio import read_audio\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"waveform, notes = read_audio({str(path)!r})\n"
        "print(len(waveform), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    samples, grown_mb = map(int, done.stdout.split())
    assert samples == minutes * 60 * RATE
    assert grown_mb < most_mb


# --- where it comes from -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_file_objects_of_every_kind_are_the_same_recording(tmp_path, kind):
    content = encoded(kind)
    path = tmp_path / "clip"
    path.write_bytes(content)
    expected = read_audio(path)
    behind = io.BytesIO(b"form-data" + content)
    behind.seek(9)
    with path.open("rb") as opened, path.open("rb", buffering=0) as raw, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(content)
        spooled.seek(0)
        for source in (io.BytesIO(content), opened, raw, spooled, behind):
            waveform, notes = read_audio(source)
            assert np.array_equal(waveform, expected[0]) and notes == expected[1]
            assert not source.closed
    assert np.array_equal(read_channels(io.BytesIO(content))[0][0], expected[0])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channel", ["mix", 2])
def test_blocks_are_the_whole_bit_for_bit_with_the_same_notes(kind, rate, channel):
    content = encoded(kind, wave=np.stack([sound(rate=rate), noise(rate=rate)], axis=1), rate=rate)
    waveform, expected = read_audio(io.BytesIO(content), channel=channel)
    notes: list[str] = []
    blocks = list(read_blocks(io.BytesIO(content), channel=channel, notes=notes))
    assert np.array_equal(np.concatenate(blocks), waveform) and tuple(notes) == expected
    assert max(map(len, blocks)) <= 65536


def test_a_reader_may_stop_in_the_middle_and_the_file_is_closed(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded("WAV", wave=sound(30.0)))
    blocks = read_blocks(path)
    next(blocks)
    blocks.close()
    path.unlink()


def write_in_background(file: int | Path, content: bytes) -> threading.Thread:
    def write() -> None:
        with open(file, "wb") as sink:
            sink.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_pipe_is_the_same_recording(kind):
    content = encoded(kind)
    reader, writer = os.pipe()
    thread = write_in_background(writer, content)
    with open(reader, "rb") as pipe:
        waveform, _ = read_audio(pipe)
    thread.join()
    assert np.array_equal(waveform, read_audio(io.BytesIO(content))[0])


@POSIX
def test_a_named_pipe_is_the_same_recording(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    content = encoded("WAV")
    thread = write_in_background(path, content)
    waveform, _ = read_audio(path)
    thread.join()
    assert np.array_equal(waveform, read_audio(io.BytesIO(content))[0])


@POSIX
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("redirected", [False, True], ids=["pipe", "file"])
def test_standard_input_is_the_same_recording(tmp_path, name, redirected):
    content = encoded("FLAC")
    code = f"from emoinv_edge.audio import read_audio; print(hash(read_audio({name!r})[0].tobytes()))"
    path = tmp_path / "clip.flac"
    path.write_bytes(content)
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code]
    if redirected:
        with path.open("rb") as file:
            done = subprocess.run(command, stdin=file, cwd=ROOT, env=environment, capture_output=True, check=True)
    else:
        done = subprocess.run(command, input=content, cwd=ROOT, env=environment, capture_output=True, check=True)
    by_path = code.replace(repr(name), repr(str(path)))
    expected = subprocess.run([sys.executable, "-c", by_path], cwd=ROOT, env=environment, capture_output=True)
    assert done.stdout == expected.stdout


@pytest.mark.parametrize("content", [b"", b"no audio\n", b"\0" * 400])
def test_a_pipe_without_audio_is_an_audio_error(content):
    reader, writer = os.pipe()
    thread = write_in_background(writer, content)
    with open(reader, "rb") as pipe, pytest.raises(AudioError):
        read_audio(pipe)
    thread.join()


@POSIX
def test_a_pipe_that_never_ends_is_refused():
    with pytest.raises(AudioError, match=r"/dev/zero: expected at most 64 MB through a pipe.*file's path"):
        read_audio("/dev/zero", max_duration_s=60)


@POSIX
def test_a_terminal_is_no_recording():
    _, terminal = os.openpty()
    with pytest.raises(AudioError, match="got a terminal; pipe one in"):
        read_audio(os.ttyname(terminal))


class Upload:
    async def read(self, size: int = -1) -> bytes:
        return b""


@pytest.mark.parametrize("source", [None, 7, b"RIFF", bytearray(b"RIFF"), io.StringIO("RIFF"), Upload(), [0.0]])
def test_what_is_neither_path_nor_binary_file_is_a_type_error_with_its_cure(source):
    with pytest.raises(TypeError, match=r"path or a binary file, got .*io\.BytesIO"):
        read_audio(source)


def test_a_file_object_at_its_end_asks_to_be_rewound():
    file = io.BytesIO()
    soundfile.write(file, sound(), RATE, format="WAV")
    with pytest.raises(AudioError, match=r"<BytesIO>: .*rewind it with \.seek\(0\)"):
        read_audio(file)
    file.seek(0)
    assert len(read_audio(file)[0]) == SECONDS * RATE


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("after", [0, 300, 5000])
def test_a_medium_that_fails_is_an_audio_error_not_half_a_recording(kind, after, capfd):
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size and self.tell() + size > after:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(AudioError, match="Input/output error"):
        read_audio(Failing(encoded(kind, wave=noise())))
    assert "Traceback" not in capfd.readouterr().err


def test_a_closed_file_is_an_audio_error():
    file = io.BytesIO(encoded("WAV"))
    file.close()
    with pytest.raises(AudioError, match="closed"):
        read_audio(file)


# --- names -------------------------------------------------------------------------------------


@POSIX
def test_a_name_that_is_not_utf8_is_read_and_shown_escaped(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    try:
        Path(name).write_bytes(encoded("WAV"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert np.array_equal(read_audio(name)[0], read_audio(io.BytesIO(encoded("WAV")))[0])
    Path(name).write_bytes(b"no audio")
    with pytest.raises(AudioError) as raised:
        read_audio(name)
    assert str(raised.value).startswith(f"{tmp_path}/caf\\xe9.wav: ")
    str(raised.value).encode("ascii")


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("a\x1b[31mred\n.wav", r"a\x1b[31mred\n.wav"),
        ("\u202ereversed.wav", r"\u202ereversed.wav"),
        ("a\0b.wav", r"a\x00b.wav"),
        ("\ud800.wav", r"\ud800.wav"),
        ("語 café.wav", "語 café.wav"),
    ],
)
def test_control_characters_in_a_name_are_shown_escaped(name, as_shown):
    with pytest.raises(AudioError) as raised:
        read_audio(name)
    assert str(raised.value).startswith(f"{as_shown}: ")
    assert str(raised.value).isprintable()


@POSIX
def test_what_the_system_refuses_to_open_is_an_audio_error(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for path in (tmp_path / "clip.wav" / "b", tmp_path / ("a" * 300), tmp_path / "loop.wav"):
        with pytest.raises(AudioError, match="cannot be read"):
            read_audio(path)


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_audio_error(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded("WAV"))
    path.chmod(0)
    with pytest.raises(AudioError, match="check its permissions"):
        read_audio(path)


# --- formats beyond libsndfile -----------------------------------------------------------------


def with_pyav(container: str, codec: str, rate: int) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as sink:
        stream = sink.add_stream(codec, rate=rate, layout="mono")
        wave = sound(rate=rate)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            sink.mux(stream.encode(part))
        sink.mux(stream.encode(None))
    return file.getvalue()


def likeness(one: np.ndarray, two: np.ndarray) -> float:
    """The correlation of two waveforms at the delay where it is largest."""
    size = len(one) + len(two)
    spectrum = np.fft.rfft(one, size) * np.fft.rfft(two, size).conj()
    return float(np.fft.irfft(spectrum).max() / np.linalg.norm(one) / np.linalg.norm(two))


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("ipod", "aac", 16000), ("webm", "libopus", 48000), ("matroska", "aac", 22050), ("adts", "aac", 44100)],
)
def test_what_libsndfile_lacks_is_read_by_pyav(tmp_path, container, codec, rate):
    waveform, notes = read(with_pyav(container, codec, rate), tmp_path)
    assert abs(len(waveform) / RATE - SECONDS) < 0.15
    assert likeness(waveform, to_mono(sound(rate=rate), rate)) > 0.95
    assert not any("promises" in note for note in notes)


def test_without_pyav_both_cures_are_named(monkeypatch, tmp_path):
    content = with_pyav("ipod", "aac", 16000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"`ffmpeg -i INPUT .*pip install 'emoinv-edge\[media\]'"):
        read_audio(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:8,\nhttp://127.0.0.1:9/a.ts\n#\0\0\n",
        b"ffconcat version 1.0\nfile http://127.0.0.1:9/a.wav\n#\0\n",
        b"v=0\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n\0",
    ],
)
def test_a_file_that_names_others_opens_none_of_them(content):
    pytest.importorskip("av")
    with pytest.raises(AudioError, match="convert it"):
        read_audio(io.BytesIO(content))
