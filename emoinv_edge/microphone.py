"""Microphone: a PortAudio input as an iterator of chunks, with nothing lost in silence.

PortAudio's callback copies each block into a bounded queue and never waits. When the queue is
full, or PortAudio reports that it lost input itself, the loss is counted and handed on in its
place among the chunks as a `Gap`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import ResampleStream, mono_chunk
from .errors import AudioError, MicrophoneError

__all__ = ["Gap", "Microphone", "input_devices"]

BLOCK_S = 0.02
STALL_S = 2.0  # a device that delivers nothing for so long is gone
RETRY_S = 1.0
MUTED_S = 5.0  # so much digital silence comes from no open microphone
DAMAGED_S = 1.0  # a run of blocks that are no audio is reported at least so often
PORTAUDIO_CURE = "install it with `apt install libportaudio2` (Debian, Ubuntu, Raspberry Pi OS)"


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Audio that was lost between two chunks.

    Parameters
    ----------
    num_samples : int
        At the microphone's `sample_rate`; 0 when something was lost but nobody knows how much, or
        when there is only something to report.
    reason : str
    """

    num_samples: int
    reason: str


def _portaudio() -> Any:
    try:
        import sounddevice
    except OSError as error:  # raised by the import itself when the shared library is missing
        raise MicrophoneError(f"PortAudio is missing ({error}); {PORTAUDIO_CURE}") from error
    return sounddevice


def input_devices() -> list[tuple[int, str, float]]:
    """The microphones: index, name and own sample rate in Hz.

    Raises
    ------
    MicrophoneError
        If PortAudio is missing or fails.
    """
    sounddevice = _portaudio()
    try:
        devices = sounddevice.query_devices()
    except sounddevice.PortAudioError as error:
        raise MicrophoneError(f"PortAudio cannot list the devices ({error}); is the sound system running?") from error
    return [
        (index, str(device["name"]), float(device["default_samplerate"]))
        for index, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]


class Microphone:
    """A microphone, open between ``with`` and its end, read by iterating over it.

    ::

        with Microphone() as microphone:
            stream = verifier.stream(microphone.sample_rate)
            for item in microphone:
                decisions = stream.gap(item.num_samples) if isinstance(item, Gap) else stream.process(item)

    The callback runs in PortAudio's thread and only copies; iterate in one thread of your own. If
    that thread falls behind by more than `buffer_s`, the newest blocks are dropped and a `Gap` of
    their length comes in their place, as it does for blocks that are not audio (NaN, infinite or far
    beyond full scale). Nothing but zeros for 5 s is reported once, by a `Gap` of 0 samples: the
    microphone may be muted.

    Parameters
    ----------
    sample_rate : int, optional
        Rate of the chunks, in Hz; the device's own rate unless given. The device always records at
        its own rate and is resampled here, as drivers resample badly or not at all.
    device : int or str, optional
        Index or part of the name, as `input_devices` lists them; the system's default unless given.
    buffer_s : float
        Audio that may wait for the reader.
    retry : bool
        When the device goes away, wait for it to come back instead of raising: the iteration yields
        a `Gap` at once, another of the time that it took, and goes on. PortAudio finds a device that
        was plugged in anew only when it is started anew, which ends every stream of the process;
        while the application has another stream of sounddevice open, that is not done, and a `Gap`
        reports it.
    """

    def __init__(
        self,
        sample_rate: int | None = None,
        device: int | str | None = None,
        *,
        buffer_s: float = 5.0,
        retry: bool = False,
    ) -> None:
        if buffer_s < 0.1:
            raise ValueError(f"expected buffer_s of at least 0.1 s, got {buffer_s!r}")
        self._sounddevice = _portaudio()
        self._device = device
        self._retry = retry
        self._capacity = max(2, round(buffer_s / BLOCK_S))
        self._lock = threading.Lock()
        self._dropped = 0
        self._stream: Any = None
        self._closed = threading.Event()
        self._closed.set()
        self._name, self._device_rate = self._query()
        self._sample_rate = self._device_rate if sample_rate is None else sample_rate
        self._start_over()

    def _query(self) -> tuple[str, int]:
        """Name and own rate of the device as it is now."""
        try:
            info = self._sounddevice.query_devices(self._device, "input")
        except (ValueError, self._sounddevice.PortAudioError) as error:
            which = "default microphone" if self._device is None else f"microphone {self._device!r}"
            raise MicrophoneError(f"no {which} ({error}); `emoinv doctor` lists the microphones") from error
        return str(info["name"]), round(float(info["default_samplerate"]))

    def _start_over(self) -> None:
        self._resampler = ResampleStream(self._device_rate, self._sample_rate)
        # Bounded by the callback itself, so that a Gap and the end always find room.
        self._queue: queue.SimpleQueue[NDArray[np.float32] | Gap | Exception | None] = queue.SimpleQueue()
        self._lost = 0  # samples at the device's rate that no Gap in the queue reports yet
        self._overflowed = False
        self._zeros = 0  # samples of digital silence that came in a row
        self._damaged = 0  # samples of blocks that are no audio and that no Gap reports yet
        self._delivered = False

    @property
    def name(self) -> str:
        """The device's name."""
        return self._name

    @property
    def sample_rate(self) -> int:
        """Rate of the chunks, in Hz."""
        return self._sample_rate

    @property
    def device_rate(self) -> int:
        """Rate that the device records at, in Hz."""
        return self._device_rate

    @property
    def dropped(self) -> int:
        """Samples lost so far because the reader did not keep up, at the device's rate."""
        return self._dropped

    def __enter__(self) -> Microphone:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start recording.

        Raises
        ------
        MicrophoneError
            If the device cannot be opened.
        """
        if self._stream is not None:
            return
        self._name, self._device_rate = self._query()  # another device may be the default by now
        self._start_over()
        try:
            self._stream = self._sounddevice.InputStream(
                samplerate=self._device_rate,
                blocksize=max(1, round(BLOCK_S * self._device_rate)),
                device=self._device,
                channels=1,
                dtype="float32",
                callback=self._callback,
                finished_callback=self._finished,
            )
            self._stream.start()
        except (ValueError, self._sounddevice.PortAudioError) as error:
            self._abandon()
            raise MicrophoneError(
                f"the microphone {self._name!r} cannot be opened ({error}); "
                "close other programs that record, or choose another device (`emoinv doctor` lists them)"
            ) from error
        self._closed.clear()

    def close(self) -> None:
        """Stop recording; an iteration under way ends after what was recorded."""
        self._closed.set()
        self._abandon()
        self._queue.put(None)

    def _abandon(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(self._sounddevice.PortAudioError):  # the device may be gone
                stream.close()

    def _callback(self, block: NDArray[np.float32], frames: int, time_info: Any, status: Any) -> None:
        try:
            with self._lock:
                if status and status.input_overflow:
                    self._overflowed = True
                if self._queue.qsize() >= self._capacity:
                    self._lost += frames
                    self._dropped += frames
                    return
                self._report_loss()
                self._queue.put(block[:, 0].copy())
        except Exception as error:  # sounddevice would print it, and the reader would know of nothing
            self._queue.put(error)

    def _report_loss(self) -> None:
        """Put a Gap where audio is missing; with the lock held."""
        if self._lost:
            seconds = self._lost / self._device_rate
            self._queue.put(Gap(self._lost, f"the reader fell behind: {seconds:.2f} s of audio were dropped"))
        elif self._overflowed:
            self._queue.put(Gap(0, "PortAudio reports that it lost input"))
        self._lost, self._overflowed = 0, False

    def _finished(self) -> None:
        self._queue.put(None)  # recording has stopped, by close() or by itself: wake the reader

    def __iter__(self) -> Iterator[NDArray[np.float32] | Gap]:
        """Yield chunks, shape (samples,), float32 in [-1, 1], and a `Gap` where audio was lost.

        Raises
        ------
        MicrophoneError
            If the device goes away and `retry` is off, or it was never opened.
        """
        if self._closed.is_set():
            raise MicrophoneError("the microphone is not open; use it in a `with` statement, or call open()")
        return self._items()

    def _items(self) -> Iterator[NDArray[np.float32] | Gap]:
        while True:
            try:
                item = self._queue.get(timeout=STALL_S)
            except queue.Empty:
                item = None
            with self._lock:
                if self._queue.empty():
                    self._report_loss()  # the callback may never come again to do it
            if isinstance(item, np.ndarray):
                yield from self._heard(item)
                continue
            yield from self._report_damage()
            if isinstance(item, Gap):
                yield from self._rest()
                yield self._gap(item.num_samples / self._device_rate, item.reason)
            elif isinstance(item, Exception):
                raise MicrophoneError(
                    f"recording from {self._name!r} failed in PortAudio's callback ({type(item).__name__}: {item}); "
                    "open the microphone again"
                ) from item
            elif self._closed.is_set():
                yield from self._rest()
                return
            elif self._queue.empty():
                yield from self._gone()

    def _heard(self, block: NDArray[np.float32]) -> Iterator[NDArray[np.float32] | Gap]:
        """What one block of the device gives: a chunk, or a Gap where the block is no audio."""
        self._delivered = True
        try:
            mono_chunk(block)
        except AudioError:
            self._damaged += len(block)
            if self._damaged >= DAMAGED_S * self._device_rate:
                yield from self._report_damage()
            return
        yield from self._report_damage()
        chunk = self._resampler.process(block)
        if len(chunk):
            yield chunk
        before, self._zeros = self._zeros, 0 if block.any() else self._zeros + len(block)
        if before < MUTED_S * self._device_rate <= self._zeros:
            yield Gap(0, f"the microphone {self._name!r} gave nothing but zeros for {MUTED_S:g} s; is it muted?")

    def _report_damage(self) -> Iterator[NDArray[np.float32] | Gap]:
        if self._damaged:
            damaged, self._damaged = self._damaged, 0
            yield from self._rest()
            yield self._gap(
                damaged / self._device_rate,
                f"{damaged} samples from {self._name!r} were NaN, infinite or far beyond full scale; "
                "if this goes on, choose another device or check its driver",
            )

    def _rest(self) -> Iterator[NDArray[np.float32]]:
        """What the resampler still holds, before audio is missing."""
        rest = self._resampler.flush()
        if len(rest):
            yield rest

    def _gap(self, seconds: float, reason: str) -> Gap:
        return Gap(round(seconds * self._sample_rate), reason)

    def _gone(self) -> Iterator[Gap]:
        """The device delivers nothing any more: say so, and wait for it where that is wanted."""
        problem = f"the microphone {self._name!r} delivers no more audio; was it unplugged?"
        if not self._retry:
            raise MicrophoneError(f"{problem} Plug it in again, and start again or use retry=True (--retry)")
        since = time.monotonic()  # the wall clock may jump
        yield Gap(0, f"{problem} Waiting for it")
        restart = not self._delivered  # a device that the system holds in place comes back by itself
        held_back = False
        while True:
            self._abandon()
            if restart and not self._others_open():
                # PortAudio lists the devices once, when it starts.
                self._sounddevice._terminate()
                self._sounddevice._initialize()
            elif restart and not held_back:
                held_back = True
                yield Gap(
                    0,
                    "PortAudio is not started anew, as that would end another stream of this program; if the "
                    f"microphone {self._name!r} is not found when it is plugged in again, close that stream",
                )
            try:
                self.open()
            except MicrophoneError:
                restart = True
                time.sleep(RETRY_S)
                if self._closed.is_set():
                    return
            else:
                break
        yield self._gap(time.monotonic() - since, f"the microphone {self._name!r} is back")

    def _others_open(self) -> bool:
        """Whether this process has a stream of sounddevice open, now that ours is closed."""
        kind = getattr(self._sounddevice, "_StreamBase", None)
        if kind is None:
            return False
        # By type(), as isinstance would wake lazy objects of other libraries.
        return any(issubclass(type(thing), kind) and not getattr(thing, "closed", True) for thing in gc.get_objects())
