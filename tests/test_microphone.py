"""Microphone, on a fake PortAudio: nothing is lost in silence, and every failure has a cure."""

from __future__ import annotations

import builtins
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge import microphone as module
from emoinv_edge.errors import AudioError, MicrophoneError
from emoinv_edge.microphone import Gap, Microphone, input_devices


class PortAudioError(Exception):
    pass


class Status:
    def __init__(self, input_overflow: bool = False) -> None:
        self.input_overflow = input_overflow

    def __bool__(self) -> bool:
        return self.input_overflow


class InputStream:
    def __init__(self, owner: PortAudio, **options: Any) -> None:
        if owner.refusal:
            raise PortAudioError(owner.refusal)
        self.owner = owner
        self.options = options
        self.active = False
        self.closed = False

    def start(self) -> None:
        self.active = True
        self.owner.stream = self

    def close(self) -> None:
        self.closed = True
        if self.active:
            self.active = False
            self.options["finished_callback"]()

    def unplug(self) -> None:
        self.active = False
        self.options["finished_callback"]()

    def deliver(self, samples: NDArray[np.float32], overflow: bool = False) -> None:
        """Call the callback with one block, in memory that is overwritten afterwards."""
        block = samples.astype(np.float32)[:, np.newaxis].copy()
        self.options["callback"](block, len(block), None, Status(overflow))
        block[:] = 99.0


class PortAudio(types.ModuleType):
    """Stands in for the module sounddevice."""

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.rate = 48000.0
        self.refusal = ""
        self.absent = False
        self.restarts = 0
        self._StreamBase = InputStream
        self.stream: InputStream | None = None

    def query_devices(self, device: Any = None, kind: str | None = None) -> Any:
        microphone = {"name": "Fake USB", "default_samplerate": self.rate, "max_input_channels": 2}
        if kind is None:
            return [microphone, {"name": "Speaker", "default_samplerate": 44100.0, "max_input_channels": 0}]
        if self.absent:
            raise PortAudioError("Error querying device -1")
        if device not in (None, 0, "Fake"):
            raise ValueError(f"No input device matching {device!r}")
        return microphone

    def InputStream(self, **options: Any) -> InputStream:
        return InputStream(self, **options)

    def _terminate(self) -> None:
        self.restarts += 1

    def _initialize(self) -> None:
        pass


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> PortAudio:
    fake = PortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(module, "STALL_S", 0.2)
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    return fake


def ramp(count: int, start: int = 0) -> NDArray[np.float32]:
    return ((np.arange(start, start + count) % 1000) / 1000).astype(np.float32)


def collect(microphone: Microphone) -> list[NDArray[np.float32] | Gap]:
    return list(microphone)


def test_blocks_come_as_recorded_and_in_order(portaudio: PortAudio) -> None:
    with Microphone() as microphone:
        assert microphone.sample_rate == microphone.device_rate == 48000
        assert microphone.name == "Fake USB"
        assert portaudio.stream is not None
        assert portaudio.stream.options["channels"] == 1 and portaudio.stream.options["samplerate"] == 48000
        for block in range(5):
            portaudio.stream.deliver(ramp(960, 960 * block))
        chunks = iter(microphone)
        first = [next(chunks) for _ in range(5)]
    assert np.array_equal(np.concatenate(first), ramp(4800))
    assert microphone.dropped == 0


def test_the_devices_own_rate_is_resampled(portaudio: PortAudio) -> None:
    from emoinv_edge.audio import to_mono

    portaudio.rate = 44100.0
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)).astype(np.float32)
    microphone = Microphone(16000)
    with microphone:
        assert portaudio.stream is not None
        for at in range(0, len(wave), 882):
            portaudio.stream.deliver(wave[at : at + 882])
        iteration = iter(microphone)
        microphone.close()
        got = np.concatenate([item for item in iteration if not isinstance(item, Gap)])
    assert microphone.device_rate == 44100 and microphone.sample_rate == 16000
    assert np.array_equal(got, to_mono(wave, 44100, 16000))


def test_a_stalled_reader_loses_blocks_and_hears_how_many(portaudio: PortAudio) -> None:
    with Microphone(buffer_s=0.2) as microphone:
        assert portaudio.stream is not None
        start = time.perf_counter()
        for block in range(50):
            portaudio.stream.deliver(ramp(960, 960 * block))
        assert time.perf_counter() - start < 1.0  # the callback never waits
        chunks = iter(microphone)
        got = [next(chunks) for _ in range(11)]
        portaudio.stream.deliver(ramp(960, 960 * 50))
        got.append(next(chunks))
    assert all(isinstance(item, np.ndarray) for item in got[:10])
    assert isinstance(got[10], Gap) and got[10].num_samples == 40 * 960 == microphone.dropped
    assert "0.80 s" in got[10].reason
    assert np.array_equal(got[11], ramp(960, 960 * 50))


def test_a_gap_stands_where_the_audio_is_missing(portaudio: PortAudio) -> None:
    with Microphone(buffer_s=0.1) as microphone:
        assert portaudio.stream is not None
        for block in range(8):
            portaudio.stream.deliver(ramp(960, 960 * block))  # 5 fit
        chunks = iter(microphone)
        first = [next(chunks) for _ in range(3)]
        for block in range(8, 10):
            portaudio.stream.deliver(ramp(960, 960 * block))
        rest = [next(chunks) for _ in range(5)]
    assert [isinstance(item, Gap) for item in first + rest] == [False] * 5 + [True] + [False] * 2
    gap = rest[2]
    assert isinstance(gap, Gap) and gap.num_samples == 3 * 960


def test_a_gap_is_counted_at_the_readers_rate(portaudio: PortAudio) -> None:
    with Microphone(16000, buffer_s=0.1) as microphone:
        assert portaudio.stream is not None
        for block in range(15):
            portaudio.stream.deliver(ramp(960, 960 * block))
        items: list[Any] = []
        chunks = iter(microphone)
        while not items or not isinstance(items[-1], Gap):
            items.append(next(chunks))
    assert sum(len(item) for item in items[:-1]) == 5 * 320
    assert items[-1].num_samples == 10 * 320


def test_what_portaudio_itself_lost_is_a_gap_too(portaudio: PortAudio) -> None:
    with Microphone() as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.stream.deliver(ramp(960, 960), overflow=True)
        chunks = iter(microphone)
        items = [next(chunks) for _ in range(3)]
    assert isinstance(items[1], Gap) and items[1].num_samples == 0 and "PortAudio" in items[1].reason


def test_close_ends_the_iteration_after_what_was_recorded(portaudio: PortAudio) -> None:
    with Microphone() as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        iteration = iter(microphone)
        assert len(next(iteration)) == 960
        portaudio.stream.deliver(ramp(960))
        microphone.close()
        assert [len(item) for item in iteration if not isinstance(item, Gap)] == [960]
    with pytest.raises(MicrophoneError, match="not open"):
        iter(microphone)


def test_a_microphone_can_be_opened_again(portaudio: PortAudio) -> None:
    microphone = Microphone()
    for _ in range(2):
        with microphone:
            assert portaudio.stream is not None
            portaudio.stream.deliver(ramp(960))
            assert np.array_equal(next(iter(microphone)), ramp(960))


def test_unplugging_is_a_clear_error(portaudio: PortAudio) -> None:
    with Microphone() as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.stream.unplug()
        chunks = iter(microphone)
        assert len(next(chunks)) == 960
        with pytest.raises(MicrophoneError, match=r"'Fake USB' delivers no more audio.*unplugged.*--retry"):
            next(chunks)


def test_a_device_that_falls_silent_is_an_error_too(portaudio: PortAudio) -> None:
    with Microphone() as microphone, pytest.raises(MicrophoneError, match="unplugged"):
        next(iter(microphone))


def test_retry_waits_for_the_device_and_gives_the_time_it_took(portaudio: PortAudio) -> None:
    with Microphone(16000, retry=True) as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.absent = True
        portaudio.stream.unplug()
        chunks = iter(microphone)
        before = next(item for item in chunks if isinstance(item, Gap))
        assert before.num_samples == 0 and "Waiting" in before.reason

        def plug_in() -> None:
            while portaudio.restarts < 2:  # however slow the machine is
                time.sleep(0.01)
            portaudio.absent = False
            portaudio.rate = 44100.0  # another socket, another rate

        start = time.monotonic()
        threading.Timer(0.2, plug_in).start()
        back = next(chunks)
        took = time.monotonic() - start
        assert isinstance(back, Gap) and "back" in back.reason
        assert 0.15 * 16000 < back.num_samples <= (took + 0.1) * 16000
        assert portaudio.restarts > 1  # PortAudio lists the devices only when it starts
        assert microphone.device_rate == 44100 and microphone.sample_rate == 16000
        for _ in range(10):
            portaudio.stream.deliver(ramp(882))
        assert len(next(chunks)) > 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: block.__setitem__(5, np.nan),
        lambda block: block.__setitem__(slice(None), np.inf),
        lambda block: block.__imul__(32768.0),
        lambda block: block.fill(-np.inf),
    ],
    ids=["one NaN", "infinite", "int16 scale", "minus infinite"],
)
@pytest.mark.parametrize("sample_rate", [48000, 16000])
def test_a_block_that_is_no_audio_is_a_gap_in_its_place(
    portaudio: PortAudio, spoil: Callable[[NDArray[np.float32]], object], sample_rate: int
) -> None:
    from emoinv_edge.audio import to_mono

    with Microphone(sample_rate) as microphone:
        assert portaudio.stream is not None
        for number in range(9):
            block = ramp(960, 960 * number)
            if number in (3, 4):
                spoil(block)
            portaudio.stream.deliver(block)
        iteration = iter(microphone)
        microphone.close()
        items = list(iteration)
    (at,) = [index for index, item in enumerate(items) if isinstance(item, Gap)]
    gap = items[at]
    assert isinstance(gap, Gap) and gap.num_samples == 2 * 960 * sample_rate // 48000
    assert "1920 samples from 'Fake USB' were NaN" in gap.reason and "driver" in gap.reason
    before, after = (np.concatenate([i for i in part if not isinstance(i, Gap)]) for part in (items[:at], items[at:]))
    assert np.array_equal(before, to_mono(ramp(3 * 960), 48000, sample_rate))
    assert np.array_equal(after, to_mono(ramp(4 * 960, 5 * 960), 48000, sample_rate))


def test_a_driver_that_gives_no_audio_any_more_is_reported_every_second(portaudio: PortAudio) -> None:
    with Microphone(16000, retry=True) as microphone:
        assert portaudio.stream is not None
        for _ in range(125):
            portaudio.stream.deliver(np.full(960, np.nan, np.float32))
        iteration = iter(microphone)
        microphone.close()
        gaps = list(iteration)
    assert [gap.num_samples for gap in gaps if isinstance(gap, Gap)] == [16000, 16000, 8000]


def test_zeros_for_five_seconds_are_one_event(portaudio: PortAudio) -> None:
    with Microphone(buffer_s=60.0) as microphone:
        assert portaudio.stream is not None
        for _ in range(900):  # 18 s
            portaudio.stream.deliver(np.zeros(960, np.float32))
        iteration = iter(microphone)
        microphone.close()
        items = list(iteration)
    (at,) = [index for index, item in enumerate(items) if isinstance(item, Gap)]
    gap = items[at]
    assert isinstance(gap, Gap) and gap.num_samples == 0 and "is it muted?" in gap.reason
    assert at == 250, "five seconds of it"
    assert sum(len(item) for item in items if not isinstance(item, Gap)) == 900 * 960


@pytest.mark.parametrize("least", [1e-4, -1e-4])
def test_the_faintest_sound_is_not_muted(portaudio: PortAudio, least: float) -> None:
    quiet = np.zeros(960, np.float32)
    quiet[7] = least
    with Microphone(buffer_s=60.0) as microphone:
        assert portaudio.stream is not None
        for number in range(900):
            portaudio.stream.deliver(quiet if number % 200 == 0 else np.zeros(960, np.float32))
        iteration = iter(microphone)
        microphone.close()
        assert not [item for item in iteration if isinstance(item, Gap)]


def test_a_microphone_that_is_muted_again_is_reported_again(portaudio: PortAudio) -> None:
    with Microphone(buffer_s=60.0) as microphone:
        assert portaudio.stream is not None
        for number in range(900):
            portaudio.stream.deliver(ramp(960) if number == 400 else np.zeros(960, np.float32))
        iteration = iter(microphone)
        microphone.close()
        assert len([item for item in iteration if isinstance(item, Gap)]) == 2


def test_a_failure_in_the_callback_reaches_the_reader(portaudio: PortAudio) -> None:
    class Unreadable:
        def __getitem__(self, where: object) -> object:
            raise MemoryError("no room for a block")

    with Microphone() as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.stream.options["callback"](Unreadable(), 960, None, Status())
        chunks = iter(microphone)
        assert len(next(chunks)) == 960
        with pytest.raises(MicrophoneError, match=r"MemoryError: no room for a block.*open the microphone again"):
            next(chunks)


def test_a_device_that_comes_back_by_itself_needs_no_restart_of_portaudio(portaudio: PortAudio) -> None:
    with Microphone(retry=True) as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.stream.unplug()
        chunks = iter(microphone)
        assert len(next(chunks)) == 960
        assert [isinstance(next(chunks), Gap) for _ in range(2)] == [True, True]
    assert portaudio.restarts == 0


@pytest.mark.parametrize("open_streams", [1, 3])
def test_retry_leaves_other_streams_of_the_application_alone(portaudio: PortAudio, open_streams: int) -> None:
    others = [portaudio.InputStream(callback=None, finished_callback=None) for _ in range(open_streams)]
    with Microphone(retry=True) as microphone:
        assert portaudio.stream is not None
        portaudio.stream.deliver(ramp(960))
        portaudio.absent = True
        portaudio.stream.unplug()
        chunks = iter(microphone)
        assert len(next(chunks)) == 960
        waiting, held_back = next(chunks), next(chunks)
        assert isinstance(waiting, Gap) and "Waiting" in waiting.reason
        assert isinstance(held_back, Gap) and "would end another stream of this program" in held_back.reason
        assert portaudio.restarts == 0

        def close_the_others() -> None:
            for other in others:
                other.close()
            portaudio.absent = False

        threading.Timer(0.1, close_the_others).start()
        back = next(chunks)
        assert isinstance(back, Gap) and "back" in back.reason


def test_a_closed_stream_of_the_application_does_not_hold_retry_back(portaudio: PortAudio) -> None:
    other = portaudio.InputStream(callback=None, finished_callback=None)
    other.close()
    with Microphone(retry=True) as microphone:
        assert portaudio.stream is not None
        portaudio.stream.unplug()
        chunks = iter(microphone)
        reasons = [item.reason for item in (next(chunks), next(chunks)) if isinstance(item, Gap)]
    assert "Waiting" in reasons[0] and "back" in reasons[1] and portaudio.restarts == 1


def test_the_wall_clock_may_jump(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    def jumping() -> float:
        raise AssertionError("the wall clock was asked")

    monkeypatch.setattr(time, "time", jumping)
    with Microphone(retry=True) as microphone:
        assert portaudio.stream is not None
        portaudio.stream.unplug()
        chunks = iter(microphone)
        gaps = [next(chunks), next(chunks)]
    assert all(isinstance(gap, Gap) and gap.num_samples < 48000 for gap in gaps)


def test_a_reader_in_another_thread_gets_every_sample(portaudio: PortAudio) -> None:
    with Microphone() as microphone:
        assert portaudio.stream is not None
        stream = portaudio.stream

        def record() -> None:
            for block in range(100):
                stream.deliver(ramp(960, 960 * block))
            microphone.close()

        thread = threading.Thread(target=record)
        chunks = iter(microphone)
        thread.start()
        got = [item for item in chunks if not isinstance(item, Gap)]
        thread.join()
    assert np.array_equal(np.concatenate(got), ramp(96000))


def test_a_device_that_cannot_be_opened_names_itself(portaudio: PortAudio) -> None:
    portaudio.refusal = "Device unavailable"
    with pytest.raises(MicrophoneError, match=r"'Fake USB' cannot be opened \(Device unavailable\)"):
        Microphone().open()


@pytest.mark.parametrize("device", [7, "Nowhere"])
def test_a_device_that_is_not_there_names_the_cure(portaudio: PortAudio, device: int | str) -> None:
    with pytest.raises(MicrophoneError, match=rf"{device!r}.*emoinv doctor"):
        Microphone(device=device)


def test_no_microphone_at_all_names_the_cure(portaudio: PortAudio) -> None:
    portaudio.absent = True
    with pytest.raises(MicrophoneError, match="no default microphone"):
        Microphone()


def test_only_inputs_are_listed(portaudio: PortAudio) -> None:
    assert input_devices() == [(0, "Fake USB", 48000.0)]


def test_senseless_options_are_refused(portaudio: PortAudio) -> None:
    with pytest.raises(ValueError, match="buffer_s"):
        Microphone(buffer_s=0.0)
    with pytest.raises(AudioError, match="out_rate"):
        Microphone(1000)


@pytest.fixture
def without_portaudio(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield


@pytest.mark.parametrize("function", [Microphone, input_devices])
def test_missing_portaudio_names_the_package_to_install(
    without_portaudio: None, function: Callable[[], object]
) -> None:
    with pytest.raises(MicrophoneError, match="apt install libportaudio2"):
        function()
