"""What a model's calibration is worth on corpora left out, in noise, at one threshold, in enrolment and adaptation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration
from emoinv_edge.encoder import Encoder

from ..evaluation.embeddings import Heard
from ..evaluation.enrolment import evaluate_enrolment, format_enrolment
from ..prepare import PreparedSet
from .bands import by_condition
from .channels import CONDITIONS, CorpusChannels
from .emotion_axis import fit_axis
from .fit import fit_trials
from .rehearse import adaptation, refusals, second_voices
from .select import corpus_by_corpus, left_out_scores, select_terms, together
from .speech import DevelopmentSpeech, join, measure, without_copies
from .thresholds import SAFETY, at_one_threshold
from .trials import Evidence, channel_trials, draw_trials, teaching_trials, with_axis
from .weights import term_names

__all__ = ["enrolment_left_out", "format_study", "study"]

Report = Callable[[str], None]


def study(
    encoder: Encoder,
    sets: Sequence[PreparedSet],
    noises: Sequence[NDArray[np.float32]],
    terms: Sequence[str] | None = None,
    tries: int = 60,
    sessions: int = 1000,
    report: Report = lambda line: None,
    channels: CorpusChannels | None = None,
    enrolment: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the speech and judge the encoder's calibration on it.

    Parameters
    ----------
    encoder : Encoder
        With a calibration: enrolment and adaptation are rehearsed with it.
    sets : sequence of PreparedSet
        Two corpora or more that the encoder was not trained on.
    noises : sequence of ndarray
        As for `measure`.
    terms : sequence of str, optional
        Groups of `GROUPS` to judge beside the cosine; by default those that the encoder's calibration weighs.
    tries, sessions : int
        Of `second_voices` and of `adaptation`; 0 leaves it out.
    report : callable
        Takes a line for each step.
    channels : CorpusChannels, optional
        A few clips of each speaker are heard through these too, for ``by_condition``.
    enrolment : sequence of str
        Corpora on which `evaluate_enrolment` judges calibrations that were fitted without them.

    Returns
    -------
    dict
        ``fingerprint``, ``terms``, ``axis_corpora`` (that gave the emotion axis), ``steps`` and ``chosen`` (of the
        forward selection), ``left_out``, ``together`` and ``one_threshold`` (``clean`` and ``noisy``: for the cosine
        and for all terms the figures of each corpus, of all trials in one, and at one threshold), ``by_condition``,
        ``enrolment`` (of each corpus, by `evaluate_enrolment`), ``adaptation``, ``refusals``, ``second_voices``.

    Raises
    ------
    ValueError
        If the encoder has no calibration, the term ``emotion_shift`` is asked for and its calibration has no axis, or
        enrolment cannot be judged on a corpus.
    """
    calibration = encoder.calibration
    if calibration is None:
        raise ValueError(f"{encoder.path}: expected a model with a calibration; export it with --calibrate")
    names = calibration.term_names if terms is None else term_names(terms)
    if "emotion_shift" in names and calibration.emotion_axis is None:
        raise ValueError(f"{encoder.path}: the term emotion_shift needs an axis, and this model's calibration has none")
    by_corpus: dict[str, DevelopmentSpeech] = {}
    for number, each in enumerate(sets):
        report(f"measure {each.clips[0].corpus}")
        lines = None if channels is None else CorpusChannels(channels.rooms[2 * number : 2 * number + 2])
        by_corpus[each.clips[0].corpus] = measure(encoder, [each], noises=noises, channels=lines)
    speech = join(by_corpus.values())
    provenance = encoder.metadata.get("emoinv.provenance") or {}
    along = [] if calibration.emotion_axis is None else provenance.get("calibration_axis", [])
    axis_corpora = [corpus for corpus in along if corpus in by_corpus]
    safety = float(provenance.get("calibration_safety", SAFETY))
    report("trials")
    everyone, teaching = draw_trials(speech), teaching_trials(speech)
    out: dict[str, Any] = {"fingerprint": encoder.fingerprint, "terms": list(names), "axis_corpora": axis_corpora}
    out |= {"steps": [], "chosen": list(names)}
    out |= _left_out(speech, everyone, teaching, names, axis_corpora, report)
    out["by_condition"] = _by_condition(speech, everyone, teaching, names, axis_corpora, report, safety)
    parts = (speech, everyone, teaching, names, axis_corpora, enrolment)
    out["enrolment"] = enrolment_left_out(*parts, report, safety=safety)
    if len({each.corpus for each in teaching}) > 1:
        report("choose terms")
        tried = with_axis(teaching, speech, fit_axis(speech, axis_corpora)) if axis_corpora else teaching
        chosen, out["steps"] = select_terms(tried)
        out["chosen"] = list(chosen)
    return out | _rehearsed(encoder, calibration, sets, by_corpus, tries, sessions, report)


def _rehearsed(
    encoder: Encoder,
    calibration: Calibration,
    sets: Sequence[PreparedSet],
    by_corpus: Mapping[str, DevelopmentSpeech],
    tries: int,
    sessions: int,
    report: Report,
) -> dict[str, Any]:
    """The parts ``adaptation``, ``refusals`` and ``second_voices`` of `study`."""
    out: dict[str, Any] = {"adaptation": {}, "refusals": {}, "second_voices": {}}
    for each in sets:
        corpus = each.clips[0].corpus
        report(f"rehearse {corpus}")
        own = without_copies(by_corpus[corpus])
        out["refusals"][corpus] = dataclasses.asdict(refusals(own, calibration))
        if sessions:
            with contextlib.suppress(ValueError):  # no speaker has clips enough
                out["adaptation"][corpus] = dataclasses.asdict(adaptation(own, calibration, sessions=sessions))
        if tries:
            out["second_voices"][corpus] = dataclasses.asdict(second_voices(encoder, each, tries=tries))
    return out


def _by_condition(
    speech: DevelopmentSpeech,
    everyone: Sequence[Evidence],
    teaching: Sequence[Evidence],
    names: Sequence[str],
    axis_corpora: Sequence[str],
    report: Report,
    safety: float,
) -> list[dict[str, Any]]:
    """The figures of `by_condition`, a row for each corpus and pair of conditions; none without channels."""
    through = channel_trials(speech)
    if not through:
        return []
    report("conditions")
    everyone, teaching = list(everyone), list(teaching)
    if axis_corpora:
        axis = fit_axis(speech, axis_corpora)
        everyone, through, teaching = (with_axis(part, speech, axis) for part in (everyone, through, teaching))
    weighed = [name for name in names if axis_corpora or name != "emotion_shift"]
    found = by_condition(everyone, through, teaching, weighed, speech, safety=safety)
    return [
        {"corpus": corpus, "enrolled": enrolled, "tested": tested, **figures}
        for (corpus, enrolled, tested), figures in found.items()
    ]


def enrolment_left_out(
    speech: DevelopmentSpeech,
    everyone: Sequence[Evidence],
    teaching: Sequence[Evidence],
    names: Sequence[str],
    axis_corpora: Sequence[str],
    corpora: Sequence[str],
    report: Report = lambda line: None,
    resamples: int = 1000,
    safety: float = SAFETY,
) -> dict[str, Any]:
    """What enrolment is worth on each corpus, by a calibration that was fitted without it.

    Parameters
    ----------
    speech : DevelopmentSpeech
    everyone, teaching : sequence of Evidence
        From `draw_trials` and `teaching_trials`.
    names, axis_corpora, corpora : sequence of str
        The terms, the corpora that give the emotion axis, and those to judge, one at a time.
    report : callable
        Takes a line for each step.
    resamples : int
        Of the bootstrap over the speakers.
    safety : float
        As for `fit_speech`.

    Returns
    -------
    dict
        From corpus to the figures of `evaluate_enrolment`.

    Raises
    ------
    ValueError
        If a corpus is not part of the speech, or lacks speakers who can be enrolled in each way.
    """
    out: dict[str, Any] = {}
    copies = speech.copies()
    through = channel_trials(speech) if corpora else []
    for corpus in corpora:
        report(f"enrolment on {corpus}, left out")
        own = [i for i, clip in enumerate(speech.clips) if clip.corpus == corpus and i not in copies]
        given = [name for name in axis_corpora if name != corpus]
        whole, taught, narrow = (
            [each for each in part if each.corpus != corpus] for part in (everyone, teaching, through)
        )
        if given:
            axis = fit_axis(speech, given)
            whole, taught, narrow = (with_axis(part, speech, axis) for part in (whole, taught, narrow))
        some = [name for name in names if given or name != "emotion_shift"]
        calibration = fit_trials(speech, whole, taught, narrow, some, safety=safety)
        heard = [Heard(speech.qualities[i], speech.embeddings[i]) for i in own]
        found = evaluate_enrolment(heard, [speech.clips[i] for i in own], calibration, resamples)
        if found is None:
            raise ValueError(f"{corpus}: expected two speakers or more with four neutral clips and several emotions")
        out[corpus] = found
    return out


def _left_out(
    speech: DevelopmentSpeech,
    everyone: Sequence[Evidence],
    teaching: Sequence[Evidence],
    names: Sequence[str],
    axis_corpora: Sequence[str],
    report: Report,
) -> dict[str, Any]:
    """The parts ``left_out``, ``one_threshold`` and ``together`` of `study`."""
    out: dict[str, Any] = {part: {"clean": {}, "noisy": {}} for part in ("left_out", "one_threshold", "together")}
    scored: dict[tuple[str, str], list[tuple[Evidence, NDArray[np.float64]]]] = {}
    # Nothing of a corpus that is judged is in the axis either.
    corpora = {each.corpus for each in everyone}
    rounds = [(list(axis_corpora), corpora - set(axis_corpora))]
    rounds += [([other for other in axis_corpora if other != corpus], {corpus}) for corpus in axis_corpora]
    for given, judged in rounds:
        whole, taught, some = everyone, teaching, [name for name in names if given or name != "emotion_shift"]
        if given:
            axis = fit_axis(speech, given)
            whole, taught = with_axis(everyone, speech, axis), with_axis(teaching, speech, axis)
        for label, weighed in (("cosine", ["cosine"]), ("all", some)) if judged else ():
            report(f"leave out {', '.join(sorted(judged))}: {label}, {' + '.join(weighed)}")
            for kind in ("clean", "noisy") if speech.copies() else ("clean",):
                noisy, tried = kind == "noisy", [each for each in taught if each.corpus in judged]
                found = left_out_scores(taught, weighed, judged=tried, noisy=noisy)
                scored.setdefault((kind, label), []).extend(found)
                out["left_out"][kind].setdefault(label, {}).update(corpus_by_corpus(found))
                rates = at_one_threshold(whole, taught, weighed, noisy=noisy, judged=judged)
                counted = {corpus: figures for (corpus, design), figures in rates.items() if design == "neutral"}
                out["one_threshold"][kind].setdefault(label, {}).update(counted)
    for (kind, label), found in scored.items():
        out["together"][kind][label] = together(found)
    return out


def format_study(found: Mapping[str, Any]) -> str:
    """The tables of `study` in Markdown."""
    axis = f", along the emotion axis of {', '.join(found['axis_corpora'])}" if found["axis_corpora"] else ""
    lines = [f"weighs {' + '.join(found['terms'])}{axis}; the rule would keep {' + '.join(found['chosen'])}", ""]
    if found["steps"]:
        judged = [name for name in found["steps"][0] if name not in ("step", "terms", "mean")]
        lines += ["Cllr of the corpora left out, every profile and both kinds of tests together:", ""]
        lines += _table(
            ["terms", *judged],
            [[step["terms"], *(f"{step[corpus]:.3f}" for corpus in judged)] for step in found["steps"]],
        )
    for kind, ranked in found["left_out"].items():
        if not ranked:
            continue
        corpora = list(ranked["cosine"])
        lines += [f"{kind} tests in other emotions, four neutral clips enrolled, the corpus left out of the fit", ""]
        lines += ["EER % / FRR % at 1 % FAR / Cllr / minCllr:", ""]
        lines += _table(
            ["terms", *corpora, "mean", "all trials in one"],
            [
                [
                    label,
                    *(_ranking(figures[corpus]) for corpus in corpora),
                    _ranking(_mean(figures.values())),
                    _ranking(found["together"][kind][label]),
                ]
                for label, figures in ranked.items()
            ],
        )
        counted = found["one_threshold"][kind]
        corpora = [corpus for corpus, figures in counted["cosine"].items() if figures["targets"]]
        lines += ["FRR % / FAR % at the threshold for 1 in 100 that the other corpora give:", ""]
        lines += _table(
            ["terms", *corpora, "mean"],
            [
                [label, *(_errors(figures[corpus]) for corpus in corpora), _errors(_mean(figures[c] for c in corpora))]
                for label, figures in counted.items()
            ],
        )
    if found["by_condition"]:
        lines += _conditions_table(found["by_condition"])
    if found["enrolment"]:
        lines += ["Each corpus left out of the calibration:", "", format_enrolment(found["enrolment"])]
    if found["adaptation"]:
        lines += ["Guarded adaptation:", ""]
        lines += _table(
            ["corpus", "owners", "impostor sessions", "exemplars of owners", "of impostors",
             "FRR % before -> after", "FAR %", "attacker's FAR %"],
            [
                [corpus, str(each["owners"]), str(each["impostor_sessions"]), str(each["adapted_own"]),
                 str(each["adapted_foreign"]),
                 *(f"{100 * each[name + '_before']:.2f} -> {100 * each[name + '_after']:.2f}"
                   for name in ("frr", "far", "attacker"))]
                for corpus, each in found["adaptation"].items()
            ],
        )  # fmt: skip
    lines += ["Refused in enrolment, %:", ""]
    head = [
        "corpus",
        "own, other emotion",
        "own, neutral",
        "others of gender",
        "two voices found",
        "one taken for two",
    ]
    rows = []
    for corpus, each in found["refusals"].items():
        joined = found["second_voices"].get(corpus, {"two_voices": math.nan, "one_voice": math.nan})
        shares = each["own_emotional"], each["own_neutral"], each["others"], joined["two_voices"], joined["one_voice"]
        rows.append([corpus, *map(_percent, shares)])
    lines += _table(head, rows)
    return "\n".join(lines)


def _conditions_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    corpora = sorted({row["corpus"] for row in rows})
    cells = {(row["enrolled"], row["tested"], row["corpus"]): row for row in rows}
    lines = ["FRR % / FAR % at the threshold for 1 in 100 that the other corpora give, by condition:", ""]
    body = [
        [f"{enrolled} / {tested}", *(_both(cells.get((enrolled, tested, corpus))) for corpus in corpora)]
        for enrolled in CONDITIONS
        for tested in CONDITIONS
    ]
    return lines + _table(["enrolled / tested", *corpora], body)


def _both(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{_percent(row['frr'])} / {_percent(row['far'], 2)}"


def _mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found = list(rows)
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def _ranking(figures: Mapping[str, float]) -> str:
    rates = f"{100 * figures['eer']:.2f} / {100 * figures['frr_at_1']:.1f}"
    return f"{rates} / {figures['cllr']:.3f} / {figures['min_cllr']:.3f}"


def _errors(figures: Mapping[str, float]) -> str:
    return f"{_percent(figures['frr'])} / {_percent(figures['far'], 2)}" + (
        " (extrapolated)" if figures["extrapolated"] else ""
    )


def _percent(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
