"""Verifier: is this the enrolled speaker, or one of several? Accept, reject, or an honest "no decision"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attempts import WITHIN_S, Session
from .audio import gather
from .decision import Comparator, Decision, Examined
from .second_voice import window_times
from .stream import VerificationStream
from .utterance import Utterance, hear, hear_blocks

__all__ = ["Verifier"]


class Verifier(Comparator):
    """Decides whether speech is an enrolled speaker's, at a false-accept rate asked for.

    Safe to share between threads. Whether a profile may be used is looked at in every decision: one that has expired
    is left out from then on. With a store, so is one that was removed from it, and one that was enrolled anew there is
    judged as it is there.

    Parameters
    ----------
    encoder : Encoder
    profiles : Profile, iterable of Profile, or ProfileStore
        Build a new verifier after the enrolment of somebody else. With several, the decision's ``speaker`` is the one
        whose profile fits best. Expired profiles, and damaged ones in a store, are left out (`left_out`).
    target_far : float
        Impostor attempts accepted, e.g. 0.01 for one in 100; against several profiles an impostor accepted as any of
        them counts once, and the threshold rises with their number.
    prior : float, optional
        Probability that an attempt is the owner's. With it, the threshold minimises the expected
        cost and `target_far` is not used.
    cost_miss, cost_false_accept : float
        Used with `prior` only.
    extrapolate : bool
        Allow a rate, or a number of profiles, that the calibration data do not support; decisions are then marked.
        Beyond the numbers measured the union bound (m times the profiles, at most m times the rate) keeps the
        threshold on the safe side.
    calibration : Calibration, optional
        Instead of the device's own and the model's.
    heard_before : HeardBefore, optional
        What this device has heard. A recording of it is NO_DECISION with the code ``heard_before``, and every attempt
        is added to it. `ProfileStore.heard` gives one that is sealed with a profile.
    countermeasure : callable, optional
        A detector of spoofed speech of your own, ``(waveform, sample_rate) -> object``, asked about every accept.
        Anything true that it returns (a string is the reason), or raises, makes it NO_DECISION with the code
        ``countermeasure``; it can make nothing an accept.
    store : ProfileStore, optional
        Where the profiles come from: what ``emoinv calibrate`` found for this device applies, and changes of the
        profiles are noticed. A profile that did not come out of the store is not looked for in it.

    Raises
    ------
    CalibrationError
        If there is no calibration, or it cannot support the rate or the number of profiles.
    ModelMismatchError
        If a profile was made by another model.
    EnrolmentError
        If there is no profile.
    ProfileExpiredError
        If all of them have expired.

    Examples
    --------
    >>> verifier = ProfileStore().verifier("ana")                    # doctest: +SKIP
    >>> if verifier.verify(waveform, sample_rate):                   # doctest: +SKIP
    ...     open_the_door()
    """

    def verify(self, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """Decide on one recording.

        Parameters
        ----------
        waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            As `emoinv_edge.audio.to_mono` takes it.
        sample_rate : int
            8000 to 192000 Hz.

        Returns
        -------
        Decision
            NO_DECISION for audio that cannot be judged: empty, silent, not finite, clipped, too
            quiet, too noisy, or with less than 0.8 s of speech.

        Raises
        ------
        TypeError, AudioError
            If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
        """
        return self.examine(waveform, sample_rate).decision

    def examine(self, waveform: NDArray[Any], sample_rate: int) -> Examined:
        """`verify`, and the embedding behind the decision."""
        heard = hear(self.encoder, waveform, sample_rate, keep_speech=False)
        return Examined(self.guard(self._decided(heard), waveform, sample_rate), heard.embedding)

    def examine_blocks(self, blocks: Iterable[NDArray[np.float32]]) -> Examined:
        """`examine` for a recording in blocks, which is never held whole: an hour takes the memory of a minute.

        With `heard_before` or a `countermeasure`, which look at the recording, it is held all the same.

        Parameters
        ----------
        blocks : iterable of ndarray, shape (samples,), float32 in [-1, 1]
            At the encoder's rate, e.g. from `emoinv_edge.audio.read_blocks`.
        """
        if self.guarded:
            return self.examine(gather(blocks), self.encoder.spec.sample_rate)
        heard = hear_blocks(self.encoder, blocks)
        return Examined(self._decided(heard), heard.embedding)

    def scores(self, waveform: NDArray[Any], sample_rate: int) -> dict[str, float]:
        """The LLR of every profile for one recording, the best first; empty where the audio cannot be judged.

        A score alone is no decision: no threshold, no `heard_before` and no `countermeasure` was asked. Use `verify`
        to open anything.

        Parameters
        ----------
        waveform, sample_rate
            As for `verify`.

        Examples
        --------
        >>> verifier.scores(waveform, 16000)             # doctest: +SKIP
        {'ana': 7.52, 'bob': -3.1}
        """
        heard = hear(self.encoder, waveform, sample_rate, keep_speech=False)
        return self.scores_of(heard.embedding, heard.quality)

    def _decided(self, heard: Utterance) -> Decision:
        if heard.refusal is not None:
            return self.no_decision(heard.refusal, heard.quality, end=heard.num_samples)
        assert heard.embedding is not None and heard.quality is not None  # one of the two is there
        times = window_times(self.encoder.guards, heard, self.encoder.spec.sample_rate)
        return self.decide(heard.embedding, heard.quality, times=times, end=heard.num_samples)

    def stream(self, sample_rate: int = 16000) -> VerificationStream:
        """A stream of decisions on audio that arrives in chunks; each stream has its own state."""
        return VerificationStream(self, sample_rate)

    def session(self, attempts: int = 2, within_s: float = WITHIN_S, *, renew: bool = False) -> Session:
        """Up to three utterances as one decision, at this verifier's false-accept rate over all of them.

        Parameters
        ----------
        attempts, within_s, renew
            As for `Session`.

        Examples
        --------
        ::

            session = verifier.session()
            decision = session.add(first, 16000)
            if not decision.accepted and not session.over:
                decision = session.add(second, 16000)  # on both together
        """
        return Session(self, attempts, within_s, renew=renew)
