"""Fit the calibration of an encoder on development speech.

The speech must be speech that the encoder was not trained on, several corpora of it. From each
speaker three profiles are made (one utterance, four neutral ones, four of different emotions); they
are tried by the remaining clips of every speaker of the same gender and corpus. The weights are
fitted on the tests in another emotion than neutral, where the cosine needs explaining. Each further
term is kept only where it lowers Cllr on corpora that the weights were not fitted on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration
from emoinv_edge.encoder import Encoder

from ..prepare import PreparedSet
from .bands import fit_conditions
from .channels import CorpusChannels
from .coverage import coverage_rates
from .emotion_axis import fit_axis
from .select import select_terms
from .sessions import session_rises
from .speech import DevelopmentSpeech, measure, noises_of
from .thresholds import SAFETY, impostor_speakers, with_thresholds
from .trials import Evidence, channel_trials, draw_trials, teaching_trials, with_axis
from .weights import calibration_of, problem_of

__all__ = ["fit_calibration", "fit_speech", "fit_trials"]

NUM_PROFILES = (1, 2, 4, 8, 16)


def fit_speech(
    speech: DevelopmentSpeech,
    *,
    names: Sequence[str] | None = None,
    source: str | None = None,
    impostors: DevelopmentSpeech | None = None,
    axis_corpora: Sequence[str] = (),
    safety: float = SAFETY,
) -> Calibration:
    """The calibration of measured development speech.

    Parameters
    ----------
    speech : DevelopmentSpeech
    names : sequence of str, optional
        The terms; chosen by `select_terms` unless given.
    source : str, optional
        What the speech was; by default its corpora and numbers of speakers.
    impostors : DevelopmentSpeech, optional
        Further speech for the thresholds alone: one clip a speaker is enough there.
    axis_corpora : sequence of str
        Corpora of the speech that give the emotion axis (`fit_axis`); none leaves ``emotion_shift`` out.
    safety : float
        How many times more strictly than the pooled impostors ask the thresholds are.

    Raises
    ------
    ValueError
        If nothing can be fitted on the speech, or the term ``emotion_shift`` is asked for without corpora that
        give the axis.
    """
    if "emotion_shift" in (names or ()) and not axis_corpora:
        raise ValueError("the term 'emotion_shift' needs an axis: name the corpora that give it")
    everyone, teaching = draw_trials(speech), teaching_trials(speech)
    further = [] if impostors is None else draw_trials(impostors)
    axis = fit_axis(speech, axis_corpora) if axis_corpora else None
    if axis is not None:
        everyone, teaching = with_axis(everyone, speech, axis), with_axis(teaching, speech, axis)
        further = further if impostors is None else with_axis(further, impostors, axis)
    if names is None:
        names, _ = select_terms(teaching)
    through = channel_trials(speech)
    if axis is not None:
        through = with_axis(through, speech, axis)
    found = fit_trials(speech, everyone, teaching, through, names, further, safety)
    return dataclasses.replace(
        found,
        source=source or _describe(everyone + further, teaching),
        coverage=coverage_rates(speech, found, {each.corpus for each in teaching}),
    )


def fit_trials(
    speech: DevelopmentSpeech,
    everyone: Sequence[Evidence],
    teaching: Sequence[Evidence],
    through: Sequence[Evidence],
    names: Sequence[str],
    further: Sequence[Evidence] = (),
    safety: float = SAFETY,
) -> Calibration:
    """The weights, conditions, thresholds and rises of sessions that trials give.

    Parameters
    ----------
    speech : DevelopmentSpeech
        That the trials were drawn from.
    everyone, teaching, through : sequence of Evidence
        From `draw_trials`, `teaching_trials` and `channel_trials`, all along one axis.
    names : sequence of str
        The terms.
    further : sequence of Evidence
        Trials of other speech, for the thresholds alone.
    safety : float
        As for `fit_speech`.
    """
    problem = problem_of(teaching)
    bare = calibration_of(problem, names, np.ones(len(problem.target), bool), teaching[0].axis)
    if through:
        bare = dataclasses.replace(bare, conditions=fit_conditions(bare, through, speech))
    found = with_thresholds(bare, [*everyone, *further, *through], NUM_PROFILES, safety)
    return dataclasses.replace(found, session_rises=session_rises(speech, everyone, found))


def _describe(everyone: Sequence[Evidence], teaching: Sequence[Evidence]) -> str:
    """The corpora, each with its number of speakers, in one line."""
    tried = impostor_speakers(everyone)
    used = {each.corpus for each in teaching}
    parts = []
    for corpus in sorted({corpus for corpus, _ in tried}):
        count = sum(key[0] == corpus for key in tried)
        parts.append(f"{corpus} ({count} speakers{'' if corpus in used else ', impostors only'})")
    return ", ".join(parts)


def fit_calibration(
    encoder: Encoder,
    sets: Iterable[PreparedSet],
    impostors: Iterable[PreparedSet] = (),
    names: Sequence[str] | None = None,
    noises: Sequence[NDArray[np.float32]] | None = None,
    axis_corpora: Sequence[str] = (),
    channels: bool = False,
    safety: float = SAFETY,
) -> Calibration:
    """Measure development speech with `encoder` and fit its calibration; what `python -m export` calls.

    Parameters
    ----------
    encoder : Encoder
        The int8 model whose file the calibration will be written into.
    sets : iterable of PreparedSet
        Two corpora or more that the encoder was not trained on, with several clips a speaker.
    impostors : iterable of PreparedSet
        Further corpora that the encoder was not trained on, for the false-accept rates alone.
    names : sequence of str, optional
        The terms; chosen by `select_terms` unless given.
    noises : sequence of ndarray, optional
        That every test is also heard in (see `measure`); pink noise unless given, none if empty.
    axis_corpora, safety
        As for `fit_speech`.
    channels : bool
        Whether a few clips of each speaker are heard through telephones, codecs and rooms too.
    """
    if noises is None:
        noises = noises_of((), encoder.spec.sample_rate)
    others = list(impostors)
    further = measure(encoder, others, noises=noises) if others else None
    development = list(sets)
    through = CorpusChannels.simulated(len(development)) if channels else None
    speech = measure(encoder, development, noises=noises, channels=through)
    return fit_speech(speech, names=names, impostors=further, axis_corpora=axis_corpora, safety=safety)
