"""EncoderSpec: a round trip through JSON, and every damage refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.errors import EmoinvError, ModelFormatError
from emoinv_edge.spec import SPEC_FORMAT, EncoderSpec

SPEC = EncoderSpec(name="base")


@settings(max_examples=50)
@given(
    st.builds(
        EncoderSpec,
        name=st.text(min_size=1, max_size=64).filter(lambda text: text.isprintable()),
        sample_rate=st.integers(16000, 48000),
        frame_length_ms=st.floats(20.0, 100.0),
        frame_shift_ms=st.floats(1.0, 20.0),
        num_mel_bins=st.integers(8, 256),
        low_hz=st.floats(0.0, 100.0),
        high_hz=st.floats(3000.0, 8000.0),
        preemphasis=st.floats(0.0, 1.0),
        window=st.sampled_from(["hamming", "povey"]),
        waveform_scale=st.floats(1e-6, 2.0**31),
        mean_normalisation=st.booleans(),
        embedding_dim=st.integers(2, 4096),
    )
)
def test_json_gives_the_same_spec_back(spec):
    assert EncoderSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["format"] == SPEC_FORMAT


def test_the_frames_are_those_of_the_paper():
    assert (SPEC.frame_length, SPEC.frame_shift, SPEC.fft_length) == (400, 160, 512)
    assert [SPEC.num_frames(n) for n in (0, 399, 400, 559, 560, 48000)] == [0, 0, 1, 1, 2, 298]


def test_a_fraction_of_a_sample_is_dropped_as_kaldi_drops_it():
    spec = dataclasses.replace(SPEC, sample_rate=11025, high_hz=5500.0)
    assert (spec.frame_length, spec.frame_shift) == (275, 110)


def test_the_frame_is_its_own_fft_length_at_a_power_of_two():
    assert dataclasses.replace(SPEC, frame_length_ms=32.0).fft_length == 512
    assert dataclasses.replace(SPEC, frame_length_ms=32.1).fft_length == 1024


def test_a_spec_is_a_value():
    assert hash(SPEC) == hash(EncoderSpec(name="base"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.sample_rate = 8000


def test_whole_numbers_are_taken_for_floats():
    assert EncoderSpec(name="base", high_hz=8000).high_hz == 8000.0
    assert EncoderSpec(name="base", high_hz=8000) == SPEC


@pytest.mark.parametrize("key", sorted(json.loads(SPEC.to_json())))
def test_a_missing_key_is_refused(key):
    values = json.loads(SPEC.to_json())
    del values[key]
    with pytest.raises(ModelFormatError, match=key):
        EncoderSpec.from_json(json.dumps(values))


def test_an_unknown_key_is_refused():
    values = {**json.loads(SPEC.to_json()), "dither": 1.0}
    with pytest.raises(ModelFormatError, match=r"'dither' is unknown"):
        EncoderSpec.from_json(json.dumps(values))


@pytest.mark.parametrize("number", [0, SPEC_FORMAT + 1, "1", None, [1]])
def test_another_format_is_refused(number):
    values = {**json.loads(SPEC.to_json()), "format": number}
    with pytest.raises(ModelFormatError, match="install the emoinv-edge version"):
        EncoderSpec.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"spec"', "\ufeff{}"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ModelFormatError):
        EncoderSpec.from_json(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "x" * 65),
        ("name", 3),
        ("sample_rate", 7999),
        ("sample_rate", 48001),
        ("sample_rate", 16000.0),
        ("sample_rate", True),
        ("sample_rate", "16000"),
        ("frame_length_ms", 4.9),
        ("frame_shift_ms", 0.9),
        ("frame_shift_ms", 25.1),
        ("num_mel_bins", 7),
        ("num_mel_bins", 257),
        ("num_mel_bins", None),
        ("low_hz", -1.0),
        ("low_hz", 8000.0),
        ("high_hz", 8000.1),
        ("preemphasis", 1.1),
        ("preemphasis", -0.1),
        ("window", "hann"),
        ("window", None),
        ("waveform_scale", 0.0),
        ("waveform_scale", -1.0),
        ("mean_normalisation", 1),
        ("mean_normalisation", "true"),
        ("embedding_dim", 1),
        ("embedding_dim", 256.0),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_name(key, value):
    with pytest.raises(ModelFormatError, match=key):
        dataclasses.replace(SPEC, **{key: value})
    with pytest.raises(ModelFormatError, match=key):
        EncoderSpec.from_json(json.dumps({**json.loads(SPEC.to_json()), key: value}))


@settings(max_examples=50)
@given(st.text(max_size=20) | st.lists(st.none() | st.floats() | st.text(max_size=5), max_size=5).map(json.dumps))
def test_no_text_does_worse_than_a_clear_error(text):
    with pytest.raises(EmoinvError):
        EncoderSpec.from_json(text)
