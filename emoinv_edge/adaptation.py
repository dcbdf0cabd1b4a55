"""Guarded adaptation: which accepted utterance is added to a profile, and which is not.

Off unless it is used: `Verifier` never changes a profile. An `Adapter` verifies as a `Verifier`
does, and after a clear ACCEPT on good speech adds that utterance to the stored profile, so that it
comes to cover the owner's other emotions and rooms. What keeps an impostor from creeping in:

- the score must be clear: above the strictest threshold that the calibration supports, by a margin;
- it must be clear against the exemplars of the *enrolment alone*. Adapted exemplars are no
  evidence for others, so that each of a chain of impostors, every one a little further off, is measured against
  the owner and not against the one before;
- the speech must be good, and no duplicate of an exemplar;
- at most `per_day` utterances are added in 24 hours, and at most `limit` adapted exemplars are kept, the oldest
  goes first, the enrolment's never;
- however many they are, together they weigh at most half of what the enrolment weighs, and add at most a tenth of a
  nat to the score against the enrolment alone (`scoring`);
- an utterance joins only the very profile that it was judged by (`ProfileStore.adapt`);
- every change is in the store's audit trail, and ``emoinv profiles rollback`` undoes it.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, bayes_threshold
from .clips import SAME_SPEAKER_PRIOR
from .decision import Decision, Verdict, require_calibration
from .encoder import Embedding, Encoder
from .enrolment import DUPLICATE_COSINE
from .errors import DailyLimitError, ProfileChangedError
from .heard import HeardBefore
from .profiles import Exemplar, Profile
from .quality import SpeechQuality
from .scoring import ProfileBank
from .verifier import Verifier

if TYPE_CHECKING:
    from .store import ProfileStore

__all__ = ["Adapted", "Adapter", "admissible"]

MARGIN = 2.0  # nats above the strictest supported threshold
MIN_SPEECH_S = 1.5
MIN_SNR_DB = 10.0
LIMIT = 8
PER_DAY = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Adapted:
    """A decision, and whether its utterance was added to the profile; true for an accept only, as the decision is.

    Parameters
    ----------
    decision : Decision
    added : bool
    """

    decision: Decision
    added: bool

    def __bool__(self) -> bool:
        """Whether the verdict is ACCEPT."""
        return self.decision.accepted

    def __iter__(self) -> Iterator[Any]:
        """The two, for ``decision, added = adapter.verify(...)``."""
        return iter((self.decision, self.added))


def admissible(
    calibration: Calibration,
    enrolled: tuple[Exemplar, ...],
    held: tuple[Exemplar, ...],
    embedding: NDArray[np.float32],
    quality: SpeechQuality,
    margin: float = MARGIN,
    confirmed: bool = False,
) -> bool:
    """Whether an utterance may become an exemplar.

    Parameters
    ----------
    calibration : Calibration
    enrolled : tuple of Exemplar
        Those of the enrolment: the score is taken against them alone.
    held : tuple of Exemplar
        All that the profile holds; none of them may be given again.
    embedding, quality
        Of the utterance.
    margin : float
        Nats above the strictest threshold that the calibration supports.
    confirmed : bool
        Whether the speaker was proven in another way: the score must then only not speak against the owner, as in an
        enrolment.
    """
    if quality.net_speech_s < MIN_SPEECH_S or quality.snr_db < MIN_SNR_DB or quality.clipped_fraction > 0.0:
        return False
    if any(float(exemplar.embedding @ embedding) > DUPLICATE_COSINE for exemplar in held):
        return False
    bank = ProfileBank.of_exemplars(enrolled, calibration.emotion_axis)
    llr = float(bank.score(calibration, embedding, quality)[0][0])
    if confirmed:
        return llr >= bayes_threshold(SAME_SPEAKER_PRIOR)
    table = calibration.far_tables[0]
    strictest = calibration.threshold(max(calibration.supported_far, table.rates[-1])).llr
    return llr >= strictest + margin


class Adapter:
    """Verifies one stored speaker and adds clear accepts to the profile.

    Not for use from several threads at once; other processes may use the same store.

    Parameters
    ----------
    encoder : Encoder
    store : ProfileStore
    name : str
        Of the profile.
    target_far : float
        As for `Verifier`.
    limit : int
        Adapted exemplars kept beside those of the enrolment.
    margin : float
        Nats above the strictest supported threshold that an utterance must reach to be kept.
    per_day : int
        Utterances that are added within 24 hours, at most.
    calibration : Calibration, optional
        Instead of the store's and the model's own.
    heard_before : HeardBefore, optional
        As for `Verifier`.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: ProfileStore,
        name: str,
        target_far: float = 0.01,
        *,
        limit: int = LIMIT,
        margin: float = MARGIN,
        per_day: int = PER_DAY,
        calibration: Calibration | None = None,
        heard_before: HeardBefore | None = None,
    ) -> None:
        if per_day < 1:
            raise ValueError(f"expected per_day of 1 or more, got {per_day}")
        if limit < 1:
            raise ValueError(f"expected a limit of 1 or more adapted exemplars, got {limit}")
        if not margin >= 0.0:
            raise ValueError(f"expected a margin of 0 or more, got {margin!r}")
        self._encoder = encoder
        self._store = store
        self._name = name
        self._target_far = target_far
        self._limit = limit
        self._margin = margin
        self._heard_before = heard_before
        self._per_day = per_day
        self._last: tuple[Decision, Embedding] | None = None
        if calibration is None:
            calibration = store.calibration(encoder)
        self._calibration = require_calibration(encoder, calibration)
        self._load(store.get(name, model_fingerprint=encoder.fingerprint, audio=False))

    def _load(self, profile: Profile) -> None:
        self._profile = profile
        self._verifier = Verifier(
            self._encoder,
            profile,
            self._target_far,
            calibration=self._calibration,
            heard_before=self._heard_before,
            store=self._store,
        )

    @property
    def profile(self) -> Profile:
        """The profile that is judged by."""
        return self._profile

    @property
    def verifier(self) -> Verifier:
        """The verifier of that profile."""
        return self._verifier

    def verify(self, waveform: NDArray[Any], sample_rate: int) -> Adapted:
        """Decide as `Verifier.verify` does, and add the utterance to the profile if it may be."""
        examined = self._verifier.examine(waveform, sample_rate)
        embedding = examined.embedding
        self._last = None if embedding is None else (examined.decision, embedding)
        added = embedding is not None and self.consider(examined.decision, embedding)
        return Adapted(examined.decision, added)

    def confirm(self, decision: Decision) -> bool:
        """Offer the utterance that `verify` has just rejected to the profile, because the owner has proven it.

        For an application that lets the owner in by other means after a reject, such as a PIN. Call it only then, and
        only where whoever spoke is who gave the proof: a PIN that others know lets them into the profile, within the
        limits of the adaptation. What speaks against the owner's voice, is of poor speech or was heard before is not
        added all the same, and an utterance counts once.

        Parameters
        ----------
        decision : Decision
            The REJECT that the last `verify` gave.

        Returns
        -------
        bool
            Whether the utterance was added.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError
            If the profile was removed meanwhile, or its expiry has passed.
        """
        last, self._last = self._last, None
        if last is None or last[0] is not decision or decision.verdict is not Verdict.REJECT:
            return False
        return self._offer(decision, last[1], confirmed=True)

    def consider(self, decision: Decision, embedding: Embedding) -> bool:
        """Add the utterance behind a decision to the profile if it may be; whether it was.

        Where the store's profile is no longer the one that was judged, nothing is added, and the next utterance is
        judged by the present one.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError
            If the profile was removed meanwhile, or its expiry has passed.
        """
        return decision.accepted and self._offer(decision, embedding)

    def _offer(self, decision: Decision, embedding: Embedding, confirmed: bool = False) -> bool:
        """Add the utterance to the profile if it is admissible and the store takes it; whether it was added."""
        quality = decision.quality
        if quality is None or not decision.final or decision.extrapolated:
            return False
        held, enrolled = self._profile.exemplars, self._profile.enrolled
        if not admissible(self._calibration, enrolled, held, embedding.vector, quality, self._margin, confirmed):
            return False
        exemplar = Exemplar(embedding.vector, quality, datetime.datetime.now(datetime.timezone.utc))
        try:
            adapted = self._store.adapt(
                self._profile, exemplar, limit=len(enrolled) + self._limit, per_day=self._per_day
            )
        except ProfileChangedError:
            self._load(self._store.get(self._name, model_fingerprint=self._encoder.fingerprint, audio=False))
            return False
        except DailyLimitError:
            return False
        self._load(adapted)
        return True
