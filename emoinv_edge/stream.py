"""VerificationStream: who is speaking, while they speak, at a cost that does not grow.

Speech is cut out by a `SpeechSegmenter`. About every 0.5 s of new speech the last 1.5 s are embedded
(features are cached per frame) and the mean embedding of the utterance is scored. Each provisional
decision is one more chance for an impostor: act on ``final`` if you need the nominal rate.

An utterance ends with a pause, or with lost or damaged audio. Nothing is carried from one
utterance to the next, as another person may speak it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attempts import Session
from .audio import MAX_PEAK, ResampleStream, mono_chunk
from .calibration import Threshold
from .decision import Comparator, Decision, Verdict
from .encoder import Embedding
from .features import LogMelStream
from .quality import CLIP_LEVEL, SpeechQuality, measure_quality, merge_qualities, snr_db
from .utterance import MAX_CLIPPED_FRACTION, MIN_SPEECH_S, Piece, Refusal, hear
from .vad import SpeechDetector, SpeechSegment, SpeechSegmenter

__all__ = ["VerificationStream"]

PIECE_MS = 120  # speech is taken over from the segmenter in pieces of this length
BACKGROUND_S = 6.0  # noise is judged from this much audio before the end of the speech, pauses included
LEAST_S = 0.2  # of speech, for one embedding
TAIL_S = 0.25  # less speech than this at the end of an utterance does not change the answer
POWER_S = 0.020  # the background is kept as the power of blocks of this length
REPORT_S = 1.0  # damaged audio is reported so often at most
GUARDED_S = 20.0  # of one utterance's speech is kept for `Comparator.guard`
WINDOWS_APART_S = 0.48  # of two windows among which a second voice is sought
LEAST_WINDOW_S = 1.4  # shorter ones differ too much within one voice
WATCH_BLOCKS = 25  # clipping is looked for in half seconds of them
NOTHING = np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """The evidence of one stretch of new speech."""

    embedding: Embedding
    weight: float  # length of the speech that the embedding saw
    quality: SpeechQuality  # of the new speech alone
    start: int  # of the new speech, in samples


class VerificationStream:
    """Decisions on audio that arrives in chunks, the same ones however it is chunked.

    Work per second and memory are bounded whatever the length of the stream. The encoder and the
    profiles are shared with other streams, everything else is this stream's own; use one stream
    from one thread at a time. Get one from `Verifier.stream`.

    Parameters
    ----------
    verifier : Verifier
        Or any other `Comparator`.
    sample_rate : int
        Of the chunks, 8000 to 192000 Hz; resampled to the encoder's rate where it differs.
    hop_s : float
        New speech from one provisional decision to the next, 0.25 to 0.5 s is sensible.
    context_s : float
        Speech that one embedding sees.
    window_s : float
        Speech of one utterance that a decision rests on, at most.
    detector : SpeechDetector, optional
        For this stream alone; WebRTC's unless given.
    session : Session, optional
        Of this verifier, and for this stream alone: each utterance is decided on with those before it, pauses
        between them. Give one that renews itself (`Session`).
    """

    def __init__(
        self,
        verifier: Comparator,
        sample_rate: int = 16000,
        *,
        hop_s: float = 0.48,
        context_s: float = 1.5,
        window_s: float = 6.0,
        detector: SpeechDetector | None = None,
        session: Session | None = None,
    ) -> None:
        if not 0.0 < hop_s <= context_s <= window_s:
            raise ValueError(
                f"expected 0 < hop_s <= context_s <= window_s, got {hop_s!r}, {context_s!r} and {window_s!r}"
            )
        if context_s < MIN_SPEECH_S:
            raise ValueError(f"expected context_s of at least {MIN_SPEECH_S} s, got {context_s!r}")
        self._comparator = verifier
        self._session = session
        self._encoder = verifier.encoder
        spec = self._encoder.spec
        self._rate = spec.sample_rate
        self._in_rate = sample_rate
        self._resampler = ResampleStream(sample_rate, self._rate)
        self._segmenter = SpeechSegmenter(self._rate, detector=detector, longest_ms=PIECE_MS)
        # Frames of features, or samples for a graph that holds its own front end.
        self._log_mel = LogMelStream(spec) if self._encoder.input == "features" else None
        self._hop = round(hop_s * self._rate)
        self._context = self._length(context_s)
        self._context_s = context_s
        self._apart = max(1, round(WINDOWS_APART_S / hop_s))
        self._window = round(window_s * self._rate)
        self._block = round(POWER_S * self._rate)
        self._watch = WATCH_BLOCKS * self._block
        self._background = round(BACKGROUND_S / POWER_S)
        # A second more than is looked at: the end of speech is known only after the hang-over.
        self._power: deque[float] = deque(maxlen=self._background + round(1.0 / POWER_S))
        self.reset()

    @property
    def verifier(self) -> Comparator:
        """The verifier whose profiles and threshold are used."""
        return self._comparator

    @property
    def threshold(self) -> Threshold:
        """The threshold of its decisions: the verifier's, or that of its sessions."""
        return self._comparator.threshold if self._session is None else self._session.threshold

    @property
    def sample_rate(self) -> int:
        """Rate of the chunks, in Hz."""
        return self._in_rate

    @property
    def position(self) -> int:
        """Samples judged or waiting, at the encoder's rate, since the start of the stream."""
        return self._segmenter.position

    @property
    def in_speech(self) -> bool:
        """Whether somebody is speaking now."""
        return self._segmenter.in_speech

    def process(self, chunk: NDArray[Any]) -> list[Decision]:
        """Take the next samples and return the decisions that they brought.

        Parameters
        ----------
        chunk : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            Of any length, 0 included; left as it is. Samples that are not finite, or far beyond full
            scale, count as lost (see `gap`).

        Returns
        -------
        list of Decision
            Provisional ones (``final=False``) about every `hop_s` of new speech, and one final one
            at the end of each utterance; `start` and `end` in samples at the encoder's rate from
            the start of the stream.

        Raises
        ------
        TypeError, AudioError
            If the chunk's type, dtype or shape is wrong: a fault of the program, not of the audio.
        """
        out: list[Decision] = []
        if isinstance(chunk, np.ndarray) and chunk.dtype.kind == "f" and chunk.ndim in (1, 2) and chunk.size:
            amplitude = np.abs(chunk)
            if not amplitude.max() <= MAX_PEAK:  # written so that NaN comes here
                with np.errstate(invalid="ignore"):
                    sound = amplitude <= MAX_PEAK
                self._damaged(chunk, sound if sound.ndim == 1 else sound.all(axis=1), out)
                return out
        mono = mono_chunk(chunk)
        if len(mono):
            self._undamaged(mono, out)
        return out

    def gap(self, num_samples: int) -> list[Decision]:
        """Note that `num_samples` samples (at `sample_rate`) were lost here.

        An utterance that is under way ends with NO_DECISION, as what was spoken over the gap is not
        known; the clock moves on.
        """
        if num_samples < 0:
            raise ValueError(f"expected a gap of 0 samples or more, got {num_samples}")
        out: list[Decision] = []
        self._end_damage(out)
        lost = Refusal("gap", "audio was lost: the microphone or the program did not keep up; speak again")
        self._lose(num_samples, lost, out)
        return out

    def flush(self) -> list[Decision]:
        """End the stream: the final decision of the open utterance, if any; then it starts anew."""
        out: list[Decision] = []
        self._end_damage(out)
        self._feed(self._resampler.flush(), out)
        for segment in self._segmenter.flush():
            self._take(segment, out)
        self.reset()
        return out

    def reset(self) -> None:
        """Forget everything but the profiles; the next sample is sample 0 of a new stream."""
        self._resampler.flush()
        self._segmenter.reset()
        if self._session is not None:
            self._session.reset()
        self._taken = 0  # samples at the input's rate
        self._damage = 0  # samples of the run of damaged ones that is under way
        self._merged = False  # whether sound samples are among them
        self._merged_until = 0  # a loss was reported so recently that what is lost before here makes one report
        self._forget_background(0)
        self._forget_utterance()

    def _forget_utterance(self) -> None:
        if self._log_mel is not None:
            self._log_mel.flush()
        self._recent: NDArray[np.float32] | None = None  # features, or samples, of the last speech
        self._steps: deque[_Step] = deque()
        self._new: list[NDArray[np.float32]] = []  # speech since the last step
        self._new_length = 0
        self._new_start = 0
        self._speech = 0  # samples of the utterance
        self._utterance_start: int | None = None
        self._heard: list[NDArray[np.float32]] = []  # speech of the utterance, where the comparator guards
        self._doubt: str | None = None  # reason of the last provisional NO_DECISION

    def _forget_background(self, origin: int) -> None:
        self._origin = origin  # of the grid of blocks: the stream's start, or the end of the last gap
        self._power.clear()
        self._num_blocks = 0
        self._part = np.empty(0, np.float32)  # of a block
        self._full_scale = 0  # samples of the half second under way
        self._clipping = False

    def _sound(self, mono: NDArray[np.float32], out: list[Decision]) -> None:
        for begin in range(0, len(mono), self._watch):  # memory must not depend on the length of a chunk
            part = mono[begin : begin + self._watch]
            self._taken += len(part)
            self._feed(part if self._in_rate == self._rate else self._resampler.process(part), out)

    def _feed(self, samples: NDArray[np.float32], out: list[Decision]) -> None:
        """Hand samples at the encoder's rate to the segmenter, and watch their power and clipping."""
        block = self._block
        while len(samples):
            # Up to the end of the half second, so that what is reported there cannot depend on the chunk.
            part = samples[: self._watch - self._num_blocks * block % self._watch - len(self._part)]
            samples = samples[len(part) :]
            joined = np.concatenate((self._part, part))
            whole = len(joined) // block
            self._part = joined[whole * block :].copy()
            if whole:
                blocks = joined[: whole * block].reshape(-1, block)
                centred = blocks - np.add.reduce(blocks, axis=1, keepdims=True) / np.float32(block)
                self._power.extend((np.add.reduce(centred * centred, axis=1) / np.float32(block)).tolist())
                self._num_blocks += whole
                self._full_scale += int(np.count_nonzero(np.abs(blocks) >= CLIP_LEVEL))
            for segment in self._segmenter.process(part):
                self._take(segment, out)
            if whole and self._num_blocks % WATCH_BLOCKS == 0:
                self._watch_clipping(out)

    def _watch_clipping(self, out: list[Decision]) -> None:
        """Report clipping that is not within an utterance, where the decision itself reports it."""
        clipping = self._full_scale > MAX_CLIPPED_FRACTION * self._watch
        if clipping and not self._clipping and self._utterance_start is None:
            end = self._origin + self._num_blocks * self._block
            refusal = Refusal("clipped", "clipped: sound at full scale that is no speech; lower the microphone's gain")
            out.append(self._comparator.no_decision(refusal, start=end - self._watch, end=end))
        self._clipping, self._full_scale = clipping, 0

    def _damaged(self, chunk: NDArray[Any], sound: NDArray[np.bool_], out: list[Decision]) -> None:
        """Take a chunk of which only the samples marked in `sound` can be used."""
        edges = np.flatnonzero(np.diff(sound)) + 1
        for part, good in zip(np.split(chunk, edges), sound[np.concatenate(([0], edges))], strict=True):
            if good:
                self._undamaged(mono_chunk(part), out)
            else:
                self._damage += len(part)

    def _undamaged(self, mono: NDArray[np.float32], out: list[Decision]) -> None:
        """Take sound samples; those between damaged ones of one second are lost with them, so that one report does."""
        if self._damage:
            lost = min(len(mono), max(0, self._merged_until - self._taken - self._damage))
            self._damage += lost
            self._merged |= lost > 0
            mono = mono[lost:]
            if not len(mono):
                return
            self._end_damage(out)
        self._sound(mono, out)

    def _end_damage(self, out: list[Decision]) -> None:
        if self._damage:
            length, self._damage = self._damage, 0
            merged, self._merged = self._merged, False
            self._lose(
                length,
                Refusal(
                    "not_finite",
                    f"not finite: {'some of ' if merged else ''}{length} samples were NaN, infinite or far beyond "
                    "full scale; find the fault in the recording chain",
                ),
                out,
            )

    def _lose(self, num_samples: int, refusal: Refusal, out: list[Decision]) -> None:
        self._feed(self._resampler.flush(), out)
        before = self._segmenter.position
        self._taken += num_samples
        self._merged_until = self._taken + round(REPORT_S * self._in_rate)
        after = max(before, round(self._taken * self._rate / self._in_rate))
        self._segmenter.gap(after - before)  # its segment is dropped: the utterance is not known to the end
        start = before if self._utterance_start is None else self._utterance_start
        self._forget_background(after)
        self._forget_utterance()
        out.append(self._comparator.no_decision(refusal, start=start, end=after))

    def _take(self, segment: SpeechSegment, out: list[Decision]) -> None:
        if self._utterance_start is None:
            self._utterance_start = segment.start
        if not self._new:
            self._new_start = segment.start
        self._new.append(segment.waveform)
        self._new_length += len(segment.waveform)
        self._speech += len(segment.waveform)
        if self._comparator.guarded and self._speech <= GUARDED_S * self._rate:
            self._heard.append(segment.waveform)
        enough = self._speech >= MIN_SPEECH_S * self._rate
        due = self._new_length >= self._hop if self._steps or self._doubt else enough
        if enough and (due or segment.final):
            self._judge(segment.end, segment.final, out)
        elif segment.final:
            quality = self._measure(segment.end)
            refusal = hear(self._encoder, Piece(NOTHING, quality), self._rate).refusal
            assert refusal is not None  # there is nothing to embed
            out.append(self._guard(self._no_decision(refusal, quality, segment.end, final=True)))
        if segment.final:
            self._forget_utterance()

    def _no_decision(self, refusal: Refusal, quality: SpeechQuality, end: int, final: bool) -> Decision:
        start = end if self._utterance_start is None else self._utterance_start
        return self._comparator.no_decision(refusal, quality, start=start, end=end, final=final)

    def _guard(self, decision: Decision) -> Decision:
        """The decision, unless the audio of this utterance was heard before or is objected to."""
        if not self._heard:
            return decision
        return self._comparator.guard(decision, np.concatenate(self._heard), self._rate)

    def _measure(self, end: int) -> SpeechQuality:
        """Quality of the new speech, its noise judged from all the audio of the last seconds."""
        quality = measure_quality(np.concatenate(self._new), self._rate)
        later = self._num_blocks - (end - self._origin) // self._block
        power = np.array(self._power)[: len(self._power) - later][-self._background :]
        power = np.maximum(0.5 * (power[:-1] + power[1:]), 1e-12)
        return dataclasses.replace(quality, snr_db=snr_db((10.0 * np.log10(power)).astype(np.float32)))

    def _judge(self, end: int, final: bool, out: list[Decision]) -> None:
        """Make a step of the new speech, and a decision of the steps in the window."""
        quality = self._measure(end)
        new = np.concatenate(self._new)
        if self._log_mel is not None:
            new = self._log_mel.process(new)
        self._recent = (new if self._recent is None else np.concatenate((self._recent, new)))[-self._context :]
        problem = self._step(quality, final)
        self._new, self._new_length = [], 0
        while self._steps and sum(step.quality.net_speech_s for step in self._steps) > self._window / self._rate:
            if len(self._steps) == 1:
                break
            self._steps.popleft()
        if problem is not None:
            decision = self._no_decision(problem, quality, end, final)
        else:
            decision = self._decide(end, final)
        # A session asks for itself before it keeps an utterance, and twice would find what was just heard.
        asked = final and problem is None and self._session is not None
        if (final or decision.accepted) and not asked:
            decision = self._guard(decision)
        doubt = decision.reason if decision.verdict is Verdict.NO_DECISION else None
        if final or doubt is None or self._doubt is None:
            out.append(decision)  # a provisional doubt is reported once, not twice a second
        self._doubt = doubt

    def _step(self, quality: SpeechQuality, final: bool) -> Refusal | None:
        """Add a step of the new speech; the reason why not, if it cannot be used."""
        tail = final and len(self._steps) > 0 and quality.net_speech_s < TAIL_S
        seen = self._recent
        if tail or seen is None or len(seen) < self._length(LEAST_S):  # as after a clipped stretch
            seen = NOTHING
        # Only the whole window must be long enough, every part of it must be clean enough.
        heard = hear(self._encoder, Piece(np.ascontiguousarray(seen), quality), self._rate, min_speech_s=0.0)
        refusal = heard.refusal
        if refusal is None:
            assert heard.embedding is not None  # one of the two is there
            self._steps.append(_Step(heard.embedding, float(len(seen)), quality, self._new_start))
            return None
        if refusal.code == "too_short":
            return None if self._steps else refusal
        if tail and refusal.code == "too_quiet":
            return None  # too short to change the answer, and often the silence into which speech dies away
        self._steps.clear()
        if refusal.code != "no_embedding":
            self._recent = None  # the next embedding must not see it either
        return refusal

    def _length(self, seconds: float) -> int:
        """Seconds of speech in what `_recent` holds: frames of features, or samples."""
        samples = round(seconds * self._rate)
        return samples if self._log_mel is None else self._encoder.spec.num_frames(samples)

    def _decide(self, end: int, final: bool) -> Decision:
        """The decision on the embeddings of the steps, averaged, and the quality of their speech."""
        total = np.sum([step.embedding.vector * np.float32(step.weight) for step in self._steps], axis=0)
        embedding = np.asarray(total / np.linalg.norm(total), np.float32)
        weight = sum(step.weight for step in self._steps)
        log_norm = sum(math.log(step.embedding.norm) * step.weight for step in self._steps) / weight
        quality = merge_qualities([step.quality for step in self._steps])
        quality = dataclasses.replace(quality, log_embedding_norm=log_norm)
        whole, times = self._whole_windows()
        found = Embedding(embedding, math.exp(log_norm), whole)
        start = self._steps[0].start
        if self._session is not None:
            at = start / self._rate
            return self._session.take(
                found, quality, times=times, start=start, end=end, final=final, at_s=at, guard=self._guard
            )
        return self._comparator.decide(found, quality, times=times, start=start, end=end, final=final)

    def _whole_windows(self) -> tuple[NDArray[np.float32] | None, list[float]]:
        """Embeddings of the steps that saw a whole context, and where each begins, in seconds of the stream."""
        whole = [step for step in self._steps if step.weight >= self._context][:: -self._apart][::-1]
        if not whole or self._context_s < LEAST_WINDOW_S:
            return None, []
        before = [self._context_s - step.quality.net_speech_s for step in whole]  # the context that is not new
        times = [max(0.0, step.start / self._rate - seconds) for step, seconds in zip(whole, before, strict=True)]
        return np.stack([step.embedding.vector for step in whole]), times
