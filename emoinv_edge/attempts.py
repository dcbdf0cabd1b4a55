"""A speaking session: up to three utterances of one person as one decision, at the rate asked for over all of them.

To try again after a reject is another chance for an impostor too: whoever lets people try twice accepts nearly twice
as many. A `Session` pools what it heard instead. Its score is the best LLR of any utterance or of any of them taken
together, less `MISSING_NATS` for every attempt that such a part leaves out: an early accept must be clearer than one
that all attempts carry, as in sequential tests. The threshold is that of the scores of impostors' whole sessions.

The score depends on which utterances were heard, not on their order, and never falls when one more is heard. Two
utterances that speak against one voice end the session.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import bayes_threshold
from .decision import Comparator, Decision, Verdict
from .quality import SpeechQuality, merge_qualities
from .scoring import ProfileBank
from .second_voice import window_times
from .utterance import Refusal, hear

if TYPE_CHECKING:
    from .calibration import Calibration, Threshold
    from .encoder import Embedding

__all__ = ["MISSING_NATS", "Session", "one_voice", "pooled"]

MISSING_NATS = 0.5
# How sure a session is beforehand that one person speaks. An owner whose voice changes much from one utterance to the
# next must not be taken for two.
ONE_VOICE_PRIOR = 0.95
WITHIN_S = 60.0

SECOND_VOICE = Refusal(
    "second_voice", "the utterances do not sound like one person; begin a new session, and speak alone"
)

Heard = tuple[NDArray[np.float32], SpeechQuality]  # an utterance: its embedding, of unit norm, and its quality


def pooled(utterances: Sequence[Heard]) -> Heard:
    """Several utterances of one person as one, weighed by their seconds of speech.

    Raises
    ------
    ValueError
        If there is none, or their embeddings cancel each other out.
    """
    if not utterances:
        raise ValueError("expected at least one utterance, got none")
    if len(utterances) == 1:
        return utterances[0]
    seconds = np.array([quality.net_speech_s for _, quality in utterances])
    total = seconds @ np.stack([embedding for embedding, _ in utterances]).astype(np.float64)
    norm = float(np.linalg.norm(total))
    if not norm > 1e-6 * float(seconds.sum()):  # written so that NaN comes here
        raise ValueError("the embeddings cancel each other out")
    quality = merge_qualities([quality for _, quality in utterances])
    norms = [quality.log_embedding_norm for _, quality in utterances]
    known = [(each, weight) for each, weight in zip(norms, seconds, strict=True) if each is not None]
    if len(known) == len(norms):
        mean = sum(each * weight for each, weight in known) / float(seconds.sum())
        quality = dataclasses.replace(quality, log_embedding_norm=float(mean))
    return np.asarray(total / norm, np.float32), quality


def one_voice(calibration: Calibration, first: Heard, second: Heard) -> bool:
    """Whether two utterances may be one person's: each against the other as if that were enrolled."""

    def llr(enrolled: Heard, test: Heard) -> float:
        names, vectors, qualities = ["speaker"], enrolled[0][None], [enrolled[1]]
        bank = ProfileBank.from_arrays(names, vectors, qualities, [1], calibration.emotion_axis)
        return float(bank.score(calibration, *test)[0][0])

    return 0.5 * (llr(first, second) + llr(second, first)) >= bayes_threshold(ONE_VOICE_PRIOR)


class Session:
    """Pools the utterances of one person into one decision; from `Verifier.session`.

    Not for use from several threads at once. An utterance that cannot be judged, or that a guard of the verifier
    objects to, does not count as an attempt.

    Parameters
    ----------
    verifier : Verifier
        Or any other `Comparator`, with a false-accept rate, not a prior.
    attempts : int
        Utterances that count at most, 2 or 3: the rate holds over all of them, however many are used.
    within_s : float
        Seconds from the first utterance on in which the others are taken.
    renew : bool
        Begin anew by itself where the session is over or has accepted, instead of refusing what comes after; for a
        microphone that stays open.

    Raises
    ------
    ValueError
        If one of these is out of range.
    CalibrationError
        If the calibration has no thresholds for sessions, and the verifier was not made with ``extrapolate=True``.
    """

    def __init__(
        self, verifier: Comparator, attempts: int = 2, within_s: float = WITHIN_S, *, renew: bool = False
    ) -> None:
        if not (math.isfinite(within_s) and within_s > 0.0):
            raise ValueError(f"expected within_s above 0 seconds, got {within_s!r}")
        self._threshold = verifier.session_threshold(attempts)
        self._verifier = verifier
        self._attempts = attempts
        self._within_s = within_s
        self._renew = renew
        self.reset()

    @property
    def attempts(self) -> int:
        """Utterances that count at most."""
        return self._attempts

    @property
    def threshold(self) -> Threshold:
        """The threshold in use: the verifier's rate over the whole session."""
        return self._threshold

    @property
    def num_heard(self) -> int:
        """Utterances that counted so far."""
        return len(self._heard)

    @property
    def decision(self) -> Decision | None:
        """The decision on all that counted so far; None before the first."""
        return self._decision

    @property
    def over(self) -> bool:
        """Whether nothing more can be added: every attempt is used, or two voices were heard."""
        return self._mixed or len(self._heard) == self._attempts

    def reset(self) -> None:
        """Begin anew."""
        self._heard: list[Heard] = []
        self._spans: list[tuple[int, int]] = []
        self._began = 0.0
        self._mixed = False
        self._decision: Decision | None = None

    def add(self, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """Decide on one more recording and those before it.

        Parameters
        ----------
        waveform, sample_rate
            As for `Verifier.verify`.

        Returns
        -------
        Decision
            On the whole session; NO_DECISION where this recording cannot be judged (`decision` still holds what was
            decided before), where it is not of the same voice as the others (``second_voice``), or where the session
            is over or too old (``session_over``).

        Raises
        ------
        TypeError, AudioError
            If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
        """
        heard = hear(self._verifier.encoder, waveform, sample_rate)
        if heard.embedding is None or heard.quality is None:
            refusal = heard.refusal or Refusal("no_embedding", "the model gave no usable embedding")
            refused = self._no_decision(refusal, heard.quality, (0, heard.num_samples))
            return self._verifier.guard(refused, waveform, sample_rate)
        return self.take(
            heard.embedding,
            heard.quality,
            times=window_times(self._verifier.encoder.guards, heard, self._verifier.encoder.spec.sample_rate),
            end=heard.num_samples,
            guard=lambda decision: self._verifier.guard(decision, waveform, sample_rate),
        )

    def take(
        self,
        embedding: Embedding | ArrayLike,
        quality: SpeechQuality,
        *,
        times: Sequence[float] | None = None,
        start: int = 0,
        end: int = 0,
        final: bool = True,
        at_s: float | None = None,
        guard: Callable[[Decision], Decision] | None = None,
    ) -> Decision:
        """Decide on one more utterance, given as `Comparator.decide` takes it.

        Parameters
        ----------
        embedding, quality, times, start, end, final
            As for `Comparator.decide`. One that is not final is judged and not kept.
        at_s : float, optional
            When it began, in seconds of any clock; the monotonic clock's now unless given.
        guard : callable, optional
            Takes a decision and gives it back, or NO_DECISION; asked before a final utterance is kept, as if it were
            accepted, because others may be accepted on the strength of it.
        """
        at = time.monotonic() if at_s is None else at_s
        late = bool(self._heard) and at - self._began > self._within_s
        if self._renew and (self.over or late or (self._decision is not None and self._decision.accepted)):
            self.reset()
            late = False
        if self._mixed or late or self.over:
            return self._no_decision(self._end(late), quality, (start, end), final)
        alone = self._verifier.decide(embedding, quality, times=times, start=start, end=end, final=final)
        if alone.score is None:
            return self._marked(alone)
        if final and guard is not None:
            guarded = guard(dataclasses.replace(alone, verdict=Verdict.ACCEPT))
            if not guarded.accepted:
                return self._marked(guarded)
        found = (np.asarray(embedding, np.float32), quality)
        mixed = not all(one_voice(self._verifier.calibration, each, found) for each in self._heard)
        spans = [*self._spans, (start, end)]
        decision = (
            self._no_decision(SECOND_VOICE, quality, _span(spans), final)
            if mixed
            else self._judge([*self._heard, found], _span(spans), final)
        )
        if final:
            self._began = self._began if self._heard else at
            self._heard.append(found)
            self._spans, self._mixed, self._decision = spans, mixed, decision
        return decision

    def _end(self, late: bool) -> Refusal:
        """Why nothing more is taken."""
        if self._mixed:
            return SECOND_VOICE
        why = f"more than {self._within_s:g} s have passed" if late else f"its {self._attempts} attempts are used"
        return Refusal("session_over", f"the session is over, {why}; begin a new one")

    def _judge(self, utterances: Sequence[Heard], span: tuple[int, int], final: bool) -> Decision:
        """The decision on some utterances of one voice."""
        found: list[tuple[float, Decision, int]] = []
        # In an order of their own: a sum in another order would differ in its last bit.
        utterances = sorted(utterances, key=lambda each: (each[0].tobytes(), repr(each[1])))
        whole = merge_qualities([quality for _, quality in utterances])
        for count in range(1, len(utterances) + 1):
            for part in itertools.combinations(utterances, count):
                try:
                    vector, quality = pooled(part)
                except ValueError:
                    continue
                each = self._verifier.decide(vector, quality, start=span[0], end=span[1], final=final)
                if each.score is not None:
                    found.append((each.score - MISSING_NATS * (self._attempts - count), each, count))
        if not found:
            return self._no_decision(
                Refusal("no_score", "no score: none of the utterances has one"), whole, span, final
            )
        score, best, count = max(found, key=lambda each: each[0])
        accepted = score >= self._threshold.llr
        together = "" if count == 1 else f" of {count} utterances together"
        return dataclasses.replace(
            self._marked(best),
            verdict=Verdict.ACCEPT if accepted else Verdict.REJECT,
            score=score,
            quality=whole,
            reason=f"LLR {score:.2f}{together} is {'at least' if accepted else 'below'} the threshold "
            f"{self._threshold.llr:.2f} of {self._attempts} attempts",
        )

    def _marked(self, decision: Decision) -> Decision:
        """The decision with the session's threshold."""
        return dataclasses.replace(decision, threshold=self._threshold.llr, extrapolated=self._threshold.extrapolated)

    def _no_decision(
        self, refusal: Refusal, quality: SpeechQuality | None, span: tuple[int, int], final: bool = True
    ) -> Decision:
        return self._marked(self._verifier.no_decision(refusal, quality, start=span[0], end=span[1], final=final))


def _span(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in spans), max(end for _, end in spans)
