"""Audio in: what is accepted comes out as one kind of waveform, what is not is refused with its cure."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.audio import ResampleStream, level_dbfs, mono_chunk, read_audio, to_mono
from emoinv_edge.errors import AudioError
from tests.builders import synthesise

RATES = [8000, 11025, 12345, 16000, 22050, 32000, 44100, 48000, 96000, 192000]
DTYPES = [np.int16, np.int32, np.float32, np.float64]


def tone(hz, seconds, rate, level=0.5):
    return (level * np.sin(2.0 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def as_dtype(waveform, dtype):
    if np.issubdtype(dtype, np.integer):
        return np.round(waveform * np.iinfo(dtype).max).astype(dtype)
    return waveform.astype(dtype)


# --- whole waveforms ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [None, 1, 2, 5])
def test_every_dtype_and_channel_count_comes_out_as_the_same_mono(dtype, channels):
    waveform = tone(440, 0.1, 16000)
    given_ = as_dtype(waveform, dtype)
    if channels:
        given_ = np.repeat(given_[:, None], channels, axis=1)
    got = to_mono(given_, 16000)
    assert got.dtype == np.float32 and got.shape == waveform.shape
    np.testing.assert_allclose(got, waveform, atol=2.0**-14)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integer_full_scale_is_one(dtype):
    limits = np.iinfo(dtype)
    got = to_mono(np.array([limits.min, 0, limits.max], dtype), 16000)
    assert got[0] == -1.0 and got[1] == 0.0
    assert 1.0 - 2.0**-14 <= got[2] <= 1.0


def test_channels_are_mixed_to_their_mean():
    left, right = tone(300, 0.1, 16000), tone(700, 0.1, 16000, 0.25)
    got = to_mono(np.stack([left, right], axis=1), 16000)
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-7)
    fortran = np.asfortranarray(np.stack([left, right], axis=1))
    assert np.array_equal(to_mono(fortran, 16000), got)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_and_level_at_any_rate(rate):
    got = to_mono(tone(1000, 1.0, rate), rate)
    assert abs(len(got) - 16000) <= 1
    middle = got[1000:15000]
    np.testing.assert_allclose(middle, tone(1000, 1.0, 16000)[1000:15000], atol=2e-3)


def test_what_the_target_rate_cannot_hold_is_filtered_out_not_folded():
    got = to_mono(tone(11000, 1.0, 48000), 48000)
    assert np.abs(got[1000:-1000]).max() < 1e-4


def test_nothing_to_convert_returns_the_waveform_itself_and_never_changes_it():
    waveform = tone(440, 0.1, 16000)
    waveform.flags.writeable = False
    assert to_mono(waveform, 16000) is waveform
    for given_, rate in ((as_dtype(waveform, np.int16), 44100), (np.stack([waveform] * 2, axis=1), 8000)):
        before = given_.copy()
        to_mono(given_, rate)
        assert np.array_equal(given_, before)


def test_small_overshoots_are_limited_to_full_scale():
    waveform = tone(440, 0.1, 16000, 1.4)
    got = to_mono(waveform, 16000)
    assert np.array_equal(got, np.clip(waveform, -1.0, 1.0))
    square = np.sign(tone(440, 0.1, 48000))
    assert np.abs(to_mono(square, 48000)).max() == 1.0  # a resampled square wave would ring beyond it


@pytest.mark.parametrize(
    ("waveform", "cure"),
    [
        (np.zeros(0, np.float32), "empty.*record it again"),
        (np.zeros((0, 2), np.int16), "empty"),
        (np.zeros(1600, np.float32), "all zero.*not muted"),
        (np.zeros((1600, 2), np.int16), "all zero.*not muted"),
        (np.full(1600, 1e-60), "all zero"),
        (np.array([0.1, np.nan, 0.1]), "1 NaN or infinite of 3"),
        (np.array([0.1, np.inf, -np.inf], np.float32), "2 NaN or infinite of 3"),
        (np.full((1600, 2), np.nan, np.float32), "3200 NaN or infinite"),
        (tone(440, 0.1, 16000) * 32768, "peak of 1638.*divide.*32768"),
        (np.full(1600, 1e300), "divide"),
        (np.zeros((2, 2, 2), np.float32), r"\(2, 2, 2\).*one recording"),
        (np.full((), 0.5, np.float32), r"\(\).*one recording"),
        (np.ones((2, 1600), np.float32), r"waveform\.T"),
        (np.ones((2, 3), np.float32), r"waveform\.T"),
        (np.ones((1600, 0), np.float32), "1 to 64 channels"),
        (np.ones(1600, np.int8), "int8.*astype"),
        (np.ones(1600, np.uint8), "uint8"),
        (np.ones(1600, np.uint16), "uint16"),
        (np.ones(1600, np.int64), "int64"),
        (np.ones(1600, np.float16), "float16"),
        (np.ones(1600, np.complex64), "complex64"),
        (np.ones(1600, bool), "bool"),
        (np.ones(1600, ">i2"), ">i2"),
        (np.array(["a", "b"]), "<U1"),
        (np.array([None, 1]), "object"),
        (np.stack([tone(440, 0.1, 16000), -tone(440, 0.1, 16000)], axis=1), r"cancel.*waveform\[:, 0\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{value.shape}",
)
def test_what_cannot_be_used_is_refused_with_its_cure(waveform, cure):
    with pytest.raises(AudioError, match=cure):
        to_mono(waveform, 16000)


@pytest.mark.parametrize(
    ("waveform", "cure"),
    [
        ([0.1, 0.2], r"numpy.asarray\(waveform, numpy.float32\)"),
        ((1, 2), "floats in"),
        (b"\0\1", r"numpy.frombuffer\(data, numpy.int16\)"),
        (bytearray(4), "frombuffer"),
        (memoryview(b"RIFF"), "read_audio"),
        (None, "NoneType"),
        (0.5, "float"),
        ("a.wav", "read_audio"),
        (pathlib.Path("a.wav"), "read_audio"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_is_a_type_error_with_its_cure(waveform, cure):
    with pytest.raises(TypeError, match=f"NumPy array.*{cure}"):
        to_mono(waveform, 16000)


def test_the_cures_of_a_foreign_type_work():
    wave = as_dtype(tone(440, 0.1, 16000), np.int16)
    expected = to_mono(wave, 16000)
    data = wave.tobytes()
    assert np.array_equal(to_mono(np.frombuffer(data, np.int16), 16000), expected)
    assert np.array_equal(to_mono(np.asarray(list(expected), np.float32), 16000), expected)
    opposed = np.stack([expected, -expected], axis=1)
    with pytest.raises(AudioError, match=r"waveform\[:, 0\]"):
        to_mono(opposed, 16000)
    assert np.array_equal(to_mono(opposed[:, 0], 16000), expected)


@pytest.mark.parametrize("rate", [0, -16000, 1, 7999, 192001])
def test_a_rate_out_of_range_is_refused(rate):
    for call in (
        lambda: to_mono(tone(440, 0.1, 16000), rate),
        lambda: to_mono(tone(440, 0.1, 16000), 16000, rate),
        lambda: ResampleStream(rate, 16000),
        lambda: ResampleStream(16000, rate),
    ):
        with pytest.raises(AudioError, match="8000 to 192000 Hz"):
            call()


@pytest.mark.parametrize("rate", [44100.5, float("nan"), float("inf"), "16000", None, True])
def test_a_rate_that_is_no_int_is_a_type_error(rate):
    with pytest.raises(TypeError, match="int in Hz"):
        to_mono(tone(440, 0.1, 16000), rate)


@pytest.mark.parametrize("rate", [8000, 8000.0, np.int64(8000), np.uint16(8000), np.float32(8000), np.float64(8000)])
def test_a_whole_number_of_any_type_is_a_rate(rate):
    wave = tone(440, 0.1, 8000)
    assert np.array_equal(to_mono(wave, rate), to_mono(wave, 8000))
    assert np.array_equal(to_mono(wave, 16000, rate), to_mono(wave, 16000, 8000))
    assert ResampleStream(rate, 16000).in_rate == 8000


# --- level -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-4])
def test_the_level_of_a_sine_is_3_db_below_its_peak(level):
    assert level_dbfs(tone(100, 1.0, 16000, level)) == pytest.approx(20 * np.log10(level) - 3.01, abs=0.01)


@pytest.mark.parametrize("length", [0, 1, 1600])
def test_silence_and_no_samples_have_the_lowest_level(length):
    assert level_dbfs(np.zeros(length, np.float32)) == -120.0


# --- chunks ------------------------------------------------------------------------------------


def test_a_silent_or_empty_chunk_is_legal():
    assert np.array_equal(mono_chunk(np.zeros(160, np.int16)), np.zeros(160, np.float32))
    assert mono_chunk(np.zeros((0, 2), np.float64)).shape == (0,)


def test_a_chunk_wider_than_long_is_legal():
    assert mono_chunk(np.full((1, 2), 0.5, np.float32)) == np.float32([0.5])


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 3),
    cuts=st.lists(st.integers(0, 500), max_size=6),
    seed=st.integers(0, 999),
)
def test_converting_chunks_equals_converting_the_whole(dtype, channels, cuts, seed):
    waveform = as_dtype(np.random.default_rng(seed).uniform(-1.0, 1.0, (500, channels)), dtype)
    chunks = np.split(waveform, sorted(cuts))
    assert np.array_equal(np.concatenate([mono_chunk(chunk) for chunk in chunks]), to_mono(waveform, 16000))


# --- resampling in chunks ----------------------------------------------------------------------


def streamed(waveform, in_rate, out_rate, cuts):
    stream = ResampleStream(in_rate, out_rate)
    parts = [stream.process(chunk) for chunk in np.split(waveform, cuts)]
    return np.concatenate([*parts, stream.flush()])


@pytest.mark.parametrize("in_rate", RATES)
@pytest.mark.parametrize("size", [17, 159, 160, 161, 479, 480, 481, 5003])
def test_resampling_chunks_equals_resampling_the_whole(in_rate, size):
    waveform = np.random.default_rng(in_rate + size).uniform(-1.0, 1.0, in_rate // 4 + 7).astype(np.float32)
    got = streamed(waveform, in_rate, 16000, range(size, len(waveform), size))
    assert np.array_equal(got, to_mono(waveform, in_rate))


@settings(deadline=None, max_examples=60)
@given(
    rates=st.tuples(st.integers(8000, 192000), st.sampled_from([8000, 16000, 48000])),
    samples=st.integers(1, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=20),
    seed=st.integers(0, 999),
)
def test_resampling_equals_the_whole_at_any_cut_and_rate(rates, samples, cuts, seed):
    waveform = np.random.default_rng(seed).uniform(-1.0, 1.0, samples).astype(np.float32)
    assert np.array_equal(streamed(waveform, *rates, sorted(cuts)), to_mono(waveform, *rates))


@pytest.mark.parametrize("in_rate", [8000, 16000, 44100])
def test_single_samples_make_the_same_stream(in_rate):
    waveform = tone(300, 0.05, in_rate)
    assert np.array_equal(streamed(waveform, in_rate, 16000, range(1, len(waveform))), to_mono(waveform, in_rate))


@pytest.mark.parametrize("in_rate", [16000, 44100])
def test_flush_equals_new(in_rate):
    stream = ResampleStream(in_rate, 16000)
    stream.process(tone(3000, 0.1, in_rate))
    stream.flush()
    waveform = tone(440, 0.2, in_rate)
    assert np.array_equal(np.concatenate([stream.process(waveform), stream.flush()]), to_mono(waveform, in_rate))
    assert len(stream.flush()) == 0


@pytest.mark.parametrize("in_rate", [16000, 48000])
def test_the_callers_buffer_may_be_reused(in_rate):
    waveform = tone(440, 0.1, in_rate)
    stream, buffer, parts = ResampleStream(in_rate, 16000), np.empty(160, np.float32), []
    for first in range(0, len(waveform), 160):
        buffer[:] = waveform[first : first + 160]
        parts.append(stream.process(buffer))
        buffer[:] = 0.0
    assert np.array_equal(np.concatenate([*parts, stream.flush()]), to_mono(waveform, in_rate))


def test_two_streams_do_not_interact():
    one, two = tone(300, 0.2, 44100), tone(900, 0.2, 44100)
    a, b = ResampleStream(44100, 16000), ResampleStream(44100, 16000)
    parts = [(a.process(one[i : i + 441]), b.process(two[i : i + 441])) for i in range(0, len(one), 441)]
    assert np.array_equal(np.concatenate([x for x, _ in parts] + [a.flush()]), to_mono(one, 44100))
    assert np.array_equal(np.concatenate([y for _, y in parts] + [b.flush()]), to_mono(two, 44100))


@pytest.mark.parametrize("in_rate", [16000, 44100])
def test_a_refused_chunk_leaves_the_stream_as_it_was(in_rate):
    waveform = tone(440, 0.2, in_rate)
    stream = ResampleStream(in_rate, 16000)
    parts = [stream.process(waveform[:1000])]
    for bad in (np.full(10, np.nan, np.float32), np.full(10, 5000.0, np.float32)):
        with pytest.raises(AudioError):
            stream.process(bad)
    for foreign in (np.zeros(10), np.zeros((10, 2), np.float32), [0.0]):
        with pytest.raises(TypeError, match="mono_chunk"):
            stream.process(foreign)
    parts += [stream.process(waveform[1000:]), stream.flush()]
    assert np.array_equal(np.concatenate(parts), to_mono(waveform, in_rate))


def test_a_stream_gives_its_rates_and_takes_silence():
    stream = ResampleStream(48000, 16000)
    assert (stream.in_rate, stream.out_rate) == (48000, 16000)
    silence = np.concatenate([stream.process(np.zeros(4800, np.float32)), stream.flush()])
    assert np.array_equal(silence, np.zeros(1600, np.float32))


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_16", 2e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "PCM_32", 1e-6),
        ("wav", "PCM_U8", 1e-2),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 5e-2),
        ("flac", "PCM_16", 2e-4),
        ("ogg", "VORBIS", 0.1),
        ("aiff", "PCM_16", 2e-4),
    ],
)
def test_a_file_of_any_kind_comes_out_as_its_waveform(tmp_path, suffix, subtype, tolerance):
    waveform, path = synthesise(1, 1), tmp_path / f"clip.{suffix}"
    soundfile.write(path, waveform, 16000, subtype=subtype)
    got, notes = read_audio(path)
    assert got.dtype == np.float32 and notes == ()
    np.testing.assert_allclose(got, waveform, rtol=0, atol=tolerance)
    assert np.array_equal(read_audio(str(path))[0], got)


def test_the_notes_say_what_was_done(tmp_path):
    path = tmp_path / "clip.wav"
    stereo = np.stack([tone(440, 0.1, 44100, 1.2), tone(440, 0.1, 44100)], axis=1)
    soundfile.write(path, stereo, 44100, subtype="FLOAT")
    waveform, notes = read_audio(path)
    assert notes == (
        "mixed 2 channels down to their mean",
        "limited samples beyond full scale",
        "resampled from 44100 to 16000 Hz",
    )
    assert np.array_equal(waveform, to_mono(stereo, 44100))
    waveform, notes = read_audio(path, 44100)
    assert len(waveform) == 4410 and not any("resampled" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "content", "cure"),
    [
        ("text.wav", b"Hello, I am no audio.\n", "holds text.*ffmpeg"),
        ("utf8.wav", "Zw\u00f6lf Boxk\u00e4mpfer\n".encode() * 40, "holds text"),
        ("empty.wav", b"", "empty.*record or copy it again"),
        ("noise.wav", bytes(range(256)) * 8, "libsndfile.*ffmpeg"),
        ("head.wav", b"RIFF", "libsndfile"),
        ("bare.raw", b"\0\1" * 500, "libsndfile"),
    ],
)
def test_a_file_that_is_no_audio_is_refused_with_its_cure(tmp_path, name, content, cure):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=cure) as raised:
        read_audio(path)
    assert str(raised.value).startswith(str(path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        read_audio(tmp_path / "absent.wav")
    with pytest.raises(AudioError, match="folder"):
        read_audio(tmp_path)


@pytest.mark.parametrize(
    ("samples", "rate", "cure"),
    [
        (np.zeros(0, np.float32), 16000, "empty"),
        (np.array([0.1, np.nan], np.float32), 16000, "NaN"),
        (np.full(1600, 20000.0, np.float32), 16000, "32768"),
        (np.full(1600, 0.1, np.float32), 4000, "8000 to 192000"),
        (np.full(1600, 0.1, np.float32), 384000, "8000 to 192000"),
    ],
)
def test_a_file_whose_audio_cannot_be_used_is_refused_by_path(tmp_path, samples, rate, cure):
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=cure) as raised:
        read_audio(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "FLOAT"])
@pytest.mark.parametrize("shape", [(1600,), (1600, 2)])
def test_a_silent_file_is_read_as_silence_with_a_note(tmp_path, subtype, shape):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(shape), 8000, subtype=subtype)
    waveform, notes = read_audio(path)
    assert np.array_equal(waveform, np.zeros(3200, np.float32))
    assert notes[-1] == "silent: every sample is zero; is the microphone muted?"


@settings(deadline=None, max_examples=40)
@given(content=st.binary(max_size=300), keep=st.integers(0, 400))
def test_damaged_files_never_do_worse_than_an_audio_error(tmp_path_factory, content, keep):
    folder = tmp_path_factory.mktemp("damaged")
    whole = folder / "whole.wav"
    soundfile.write(whole, tone(440, 0.05, 16000), 16000)
    path = folder / "clip.wav"
    path.write_bytes(whole.read_bytes()[:keep] + content)
    try:
        waveform, _ = read_audio(path)
    except AudioError as error:
        assert str(path) in str(error)
    else:
        assert waveform.dtype == np.float32 and np.abs(waveform).max() <= 1.0
