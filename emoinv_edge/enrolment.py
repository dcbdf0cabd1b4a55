"""Enroller: utterances in, feedback at once, a profile at the end; and a microphone's chunks cut into utterances.

A profile of neutral speech alone is what defeats verifiers when the owner is angry, so the prompts ask
for what it does not cover yet (`coverage`): louder, softer, excited, low. They are offers, not demands.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import level_dbfs
from .calibration import Calibration, bayes_threshold
from .clips import Clips, Doubt
from .cohort import cohort_of, refuse_implausible
from .coverage import Coverage, coverage_of, next_prompt
from .decision import require_calibration, require_model
from .encoder import Encoder
from .errors import EnrolmentError
from .heard import HeardBefore
from .microphone import Gap
from .profiles import Exemplar, Profile
from .prompts import read_prompts
from .quality import SpeechQuality, measure_quality
from .scoring import ProfileBank
from .second_voice import second_voice, window_times
from .utterance import Utterance, hear
from .vad import SpeechSegmenter
from .voice import is_unvoiced

__all__ = ["Enroller", "EnrolmentFeedback", "utterances"]

MIN_UTTERANCE_S = 1.0
MIN_PROFILE_S = 2.0  # below, no profile is made
TARGET_S = 10.0  # progress reaches 100 % here, and with TARGET_UTTERANCES
TARGET_UTTERANCES = 4
MAX_UTTERANCES = 40
UNDECIDED_PROGRESS = 0.99
MIN_ENROL_SNR_DB = 5.0
# An utterance nearer than this to an earlier one is the same recording again: even the same
# sentence in the same emotion, spoken twice, stays below.
DUPLICATE_COSINE = 0.985
# Of the search for a second voice inside one utterance, where the model gives no windows of its own.
SAME_CLIP_PRIOR = 0.9
WINDOW_S = 1.6

PAUSE_MS = 800  # a pause as long ends an utterance at the microphone
MARGIN_S = 0.4  # of what came before and after it is kept: the noise is judged from there
SHORTEST_S = 0.4  # anything shorter is a click or a cough, and not worth a word
LONGEST_MS = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class EnrolmentFeedback:
    """What became of one utterance.

    Parameters
    ----------
    accepted : bool
    reason : str
        ``accepted``, or why not: ``empty``, ``not_finite``, ``silent``, ``channels``, ``too_short``, ``clipped``,
        ``too_quiet``, ``too_noisy``, ``no_voice``, ``duplicate``, ``second_voice``, ``other_speaker``, ``full``,
        ``no_embedding``.
    message : str
        The same in a sentence, with the cure.
    seconds : float
        Net speech accepted so far.
    progress : float
        0 to 1; a profile can be made before 1 (see `Enroller.ready`).
    prompt : str
        The next thing to say.
    quality : SpeechQuality or None
        Of this utterance, as far as it could be measured.
    """

    accepted: bool
    reason: str
    message: str
    seconds: float
    progress: float
    prompt: str
    quality: SpeechQuality | None = None

    def __bool__(self) -> bool:
        """Whether it was accepted."""
        return self.accepted


class Enroller:
    """Collects utterances of one speaker until a profile can be made.

    Keeps the accepted exemplars; not for use from several threads at once.

    Parameters
    ----------
    encoder : Encoder
    calibration : Calibration, optional
        Instead of the model's own.
    profile : Profile, optional
        An existing profile to add utterances to; made by the same model.
    keep_audio : bool
        Keep the speech itself (16-bit mono at the model's rate) in each exemplar, so that another
        model can enrol the speaker again without asking. Off by default: audio is personal.
    heard_before : HeardBefore, optional
        The utterances that are taken are added to it, so that a played-back one is known later.
    sure : bool
        Take utterances that do not sound like the speaker of the others, or of the profile, all the same: you know
        who spoke. `doubts` still lists them.
    language : str
        Of the prompts: one of `emoinv_edge.prompts.languages`.

    Raises
    ------
    ValueError
        If there are no prompts in that language.
    CalibrationError
        If there is no calibration: without it a second voice is not recognised.
    ModelMismatchError
        If `profile` was made by another model.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        calibration: Calibration | None = None,
        profile: Profile | None = None,
        keep_audio: bool = False,
        heard_before: HeardBefore | None = None,
        sure: bool = False,
        language: str = "en",
    ) -> None:
        self._encoder = encoder
        self._calibration = require_calibration(encoder, calibration)
        self._keep_audio = keep_audio
        self._heard_before = heard_before
        self._base = profile
        held = () if profile is None else profile.exemplars
        self._held = len(held)
        self._digests: set[bytes] = set()
        self._prompts = read_prompts(language)
        self._answered = ""  # the name of the last prompt that an accepted utterance followed
        if profile is not None:
            require_model(encoder, profile)
        self._clips = Clips(self._calibration, encoder.guards, held, sure=sure)
        self._sure = sure
        self._num_given = 0

    @property
    def seconds(self) -> float:
        """Net speech accepted so far."""
        return sum(exemplar.quality.net_speech_s for exemplar in self._exemplars)

    @property
    def added(self) -> tuple[Exemplar, ...]:
        """The exemplars of the utterances that were accepted."""
        return tuple(self._exemplars[self._held :])

    @property
    def progress(self) -> float:
        """0 to 1: both the seconds and the number of utterances count; below 1 while they may be two people's."""
        most = UNDECIDED_PROGRESS if self._undecided else 1.0
        return min(most, self.seconds / TARGET_S, len(self._exemplars) / TARGET_UTTERANCES)

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """The utterances that do not sound like the speaker of most, which are left out of the profile.

        All are tried against all: the first one can be doubted too, as soon as two others agree, and one that
        was refused is taken after all where later ones agree with it.
        """
        return self._clips.doubts

    @property
    def taken(self) -> tuple[int, ...]:
        """The utterances that the profile will hold: 0 for the first one given to `add`, whatever became of it."""
        return self._clips.taken

    @property
    def ready(self) -> bool:
        """Whether `profile` can be called."""
        return bool(self._exemplars) and self.seconds >= MIN_PROFILE_S and not self._undecided

    @property
    def _exemplars(self) -> list[Exemplar]:
        return self._clips.kept

    @property
    def _undecided(self) -> bool:
        return self._clips.undecided and not self._sure

    @property
    def prompt(self) -> str:
        """The next thing to say: normal speech, then what would help most."""
        return self._prompts[self._prompt_name()]

    @property
    def coverage(self) -> Coverage | None:
        """How far the utterances accepted so far reach, and how many rejects that leaves; None before the first."""
        return coverage_of([exemplar.quality for exemplar in self._exemplars], self._calibration)

    def _prompt_name(self) -> str:
        return next_prompt([exemplar.quality for exemplar in self._exemplars], self._answered)

    def add(self, waveform: NDArray[Any], sample_rate: int) -> EnrolmentFeedback:
        """Take one utterance, or refuse it with the reason.

        Parameters
        ----------
        waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            One person speaking for 1 s or more, as `emoinv_edge.audio.to_mono` takes it.
        sample_rate : int
            8000 to 192000 Hz.

        Raises
        ------
        TypeError, AudioError
            If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
        """
        number, self._num_given = self._num_given, self._num_given + 1
        heard = hear(self._encoder, waveform, sample_rate, min_speech_s=MIN_UTTERANCE_S, min_snr_db=MIN_ENROL_SNR_DB)
        quality = heard.quality
        if heard.refusal is not None:
            return self._refuse(heard.refusal.code, _sentence(heard.refusal.message), quality)
        assert heard.embedding is not None and quality is not None  # there was no refusal
        if len(self._exemplars) >= MAX_UTTERANCES:
            return self._refuse("full", f"A profile holds at most {MAX_UTTERANCES} utterances.", quality)
        audio = np.clip(np.rint(heard.speech * 32768.0), -32768, 32767).astype("<i2").tobytes()
        digest = hashlib.sha256(audio).digest()
        refused = self._spoilt(heard, digest)
        if refused is not None:
            return self._refuse(*refused, quality)
        self._digests.add(digest)
        answered = self._prompt_name()
        now = datetime.datetime.now(datetime.timezone.utc)
        exemplar = Exemplar(heard.embedding.vector, quality, now, audio if self._keep_audio else None)
        doubt = self._clips.add(number, exemplar)
        if doubt is not None:
            return self._refuse("other_speaker", self._doubtful(doubt), quality)
        self._answered = answered
        if self._heard_before is not None:
            self._heard_before.add(waveform, sample_rate)
        unvoiced = " (unvoiced: whispered or hoarse; say it aloud too)" if is_unvoiced(quality) else ""
        return EnrolmentFeedback(
            accepted=True,
            reason="accepted",
            message=f"Good: {quality.net_speech_s:.1f} s of speech{unvoiced}.",
            seconds=self.seconds,
            progress=self.progress,
            prompt=self.prompt,
            quality=quality,
        )

    def profile(self, name: str, consent: str = "") -> Profile:
        """The profile of the utterances accepted so far.

        Raises
        ------
        EnrolmentError
            If less than 2 s of speech were accepted, they may be two people's, or the profile accepts too many
            strangers (`cohort`).
        """
        if self._undecided:
            raise EnrolmentError(
                "expected utterances of one person, got as many that sound like another; add one more of the speaker "
                "to decide it, leave the others' out, or pass sure=True (--sure) if you know that all are the speaker's"
            )
        if not self.ready:
            raise EnrolmentError(
                f"expected at least {MIN_PROFILE_S:g} s of accepted speech, got {self.seconds:.1f} s in "
                f"{len(self._exemplars)} utterances; add more (each answer of add() holds the next prompt)"
            )
        if self._base is not None:
            exemplars = (*self._base.enrolled, *self.added, *self._base.adapted)
            profile = dataclasses.replace(self._base, name=name, exemplars=exemplars)
        else:
            now = datetime.datetime.now(datetime.timezone.utc)
            profile = Profile(name, self._encoder.fingerprint, tuple(self._exemplars), now, consent=consent)
        refuse_implausible(profile, self._calibration, cohort_of(self._encoder))
        return profile

    def _spoilt(self, heard: Utterance, digest: bytes) -> tuple[str, str] | None:
        """Reason and message if this is a duplicate or a mixture of voices."""
        embedding, guards = heard.embedding, self._encoder.guards
        assert embedding is not None  # there was no refusal
        duplicate = digest in self._digests or any(
            float(exemplar.embedding @ embedding) > DUPLICATE_COSINE for exemplar in self._clips.given
        )
        if duplicate:
            return "duplicate", "This recording, or a copy of it, was given before; say something new."
        if guards is not None and guards.windows is not None:
            times = window_times(guards, heard, self._encoder.spec.sample_rate)
            found = second_voice(guards, embedding.windows, times)
            return None if found is None else (found.code, _sentence(found.message))
        if self._mixed(heard.speech):
            return "second_voice", "There seems to be a second voice in this recording; record it alone."
        return None

    def _doubtful(self, doubt: Doubt) -> str:
        """The message to a speaker whose utterance is doubted."""
        said = f"(LLR {doubt.llr:.1f}, at least {doubt.least:.1f} is asked for)"
        if self._base is not None:
            return (
                f"This does not sound enough like the profile's speaker {said}; say it closer to your normal voice, "
                "or pass sure=True (--sure) if you know who spoke."
            )
        return (
            f"This does not sound like the speaker of the other utterances {said}; if it is, say it closer to your "
            "normal voice first, and if one of the others is not, go on: as soon as most agree, it is left out."
        )

    def _mixed(self, speech: NDArray[np.float32]) -> bool:
        """Whether some stretch of the utterance speaks against the rest of it."""
        rate = self._encoder.spec.sample_rate
        count = int(len(speech) / (WINDOW_S * rate))
        if count < 2:
            return False
        windows = np.array_split(speech, count)
        now = datetime.datetime.now(datetime.timezone.utc)
        pieces = []
        for piece in windows:
            embedding = self._encoder.embed(piece, rate)
            quality = measure_quality(piece, rate).with_embedding_norm(embedding.norm)
            pieces.append(Exemplar(embedding.vector, quality, now))
        limit = bayes_threshold(SAME_CLIP_PRIOR)
        return any(
            self._llr(pieces[:index] + pieces[index + 1 :], piece.embedding, piece.quality) < limit
            for index, piece in enumerate(pieces)
        )

    def _llr(self, exemplars: list[Exemplar], embedding: NDArray[np.float32], quality: SpeechQuality) -> float:
        bank = ProfileBank.of_exemplars(exemplars, self._calibration.emotion_axis)
        return float(bank.score(self._calibration, embedding, quality)[0][0])

    def _refuse(self, reason: str, message: str, quality: SpeechQuality | None = None) -> EnrolmentFeedback:
        return EnrolmentFeedback(
            accepted=False,
            reason=reason,
            message=message,
            seconds=self.seconds,
            progress=self.progress,
            prompt=self.prompt,
            quality=quality,
        )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith("?") else ".")


def utterances(
    chunks: Iterable[NDArray[np.float32] | Gap], rate: int, meter: Callable[[float, bool], None]
) -> Iterator[NDArray[np.float32] | Gap]:
    """Cut a microphone's chunks into whole utterances, each with a little of what surrounds it.

    Parameters
    ----------
    chunks : iterable of ndarray and Gap
        As a `Microphone` yields them.
    rate : int
        Of the chunks.
    meter : function of a level in dBFS and of whether there is speech
        Called for every chunk.

    Yields
    ------
    ndarray or Gap
        An utterance, shape (samples,), float32; or, where audio was lost, the gap: the utterance of that
        moment is dropped, as splicing over a gap would make speech that nobody spoke.
    """
    segmenter = SpeechSegmenter(rate, hang_over_ms=PAUSE_MS, longest_ms=LONGEST_MS)
    margin = round(MARGIN_S * rate)
    recent: deque[NDArray[np.float32]] = deque()
    first = 0  # position of the first sample in `recent`
    keep = (LONGEST_MS + 2 * PAUSE_MS) * rate // 1000 + 2 * margin
    for chunk in chunks:
        if isinstance(chunk, Gap):
            segmenter.gap(chunk.num_samples)
            recent.clear()
            first = segmenter.position
            yield chunk
            continue
        meter(level_dbfs(chunk), segmenter.in_speech)
        recent.append(chunk)
        for segment in segmenter.process(chunk):
            if segment.end - segment.start < SHORTEST_S * rate:
                continue
            heard = np.concatenate(recent)
            yield heard[max(0, segment.start - margin - first) : segment.end + margin - first]
        while recent and segmenter.position - first - len(recent[0]) > keep:
            first += len(recent.popleft())
