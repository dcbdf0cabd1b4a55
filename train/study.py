"""What a model's calibration is worth on corpora left out, in noise, at one threshold, in enrolment and adaptation.

Makes the tables of CALIBRATION.md: `python -m train calibration MODEL SET...`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder

from .adaptation import simulate
from .calibrate import (
    DevelopmentSpeech,
    Trials,
    at_one_threshold,
    beside_moods,
    corpus_by_corpus,
    learn_moods,
    left_out_scores,
    make_trials,
    measure,
    select_terms,
    teaching_trials,
    term_names,
    together,
)
from .enrolment import refusals, second_voices
from .prepare import PreparedSet

__all__ = ["format_study", "study"]

POOLING = "centroid"


def study(
    encoder: Encoder,
    sets: Sequence[PreparedSet],
    noises: Sequence[NDArray[np.float32]],
    terms: Sequence[str] | None = None,
    tries: int = 60,
    sessions: int = 1000,
    say: Callable[[str], None] = lambda line: None,
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
        Of `second_voices` and of `simulate`; 0 leaves it out.
    say : callable
        Takes a line for each step.

    Returns
    -------
    dict
        ``terms``, ``moods`` (corpora that gave directions), ``steps`` and ``chosen`` (of the forward selection),
        ``left_out``, ``together`` and ``one_threshold`` (``clean`` and ``noisy``: for each choice of terms the figures
        of each corpus, of all trials in one, and at one threshold), ``adaptation``, ``refusals``, ``second_voices``.
    """
    if encoder.calibration is None:
        raise ValueError(f"{encoder.path}: expected a model with a calibration; export it with --calibrate")
    calibration = encoder.calibration
    by_corpus: dict[str, DevelopmentSpeech] = {}
    for each in sets:
        say(f"measure {each.clips[0].corpus}")
        by_corpus[each.clips[0].corpus] = measure(encoder, [each], noises=noises)
    speech = _join(by_corpus.values())
    names = calibration.term_names if terms is None else term_names(terms)
    if "mood_shift" in names and calibration.moods is None:
        raise ValueError(f"{encoder.path}: the term mood_shift needs moods, and this model's calibration knows none")
    moods = (encoder.metadata.get("emoinv.provenance") or {}).get("calibration_moods", [])
    moods = [corpus for corpus in moods if corpus in by_corpus] if calibration.moods is not None else []
    count = 0 if calibration.moods is None else len(calibration.moods.shares)
    out: dict[str, Any] = {"terms": list(names), "moods": moods, "steps": [], "chosen": list(names)}
    out["left_out"] = {kind: {} for kind in ("clean", "noisy")}
    out["one_threshold"] = {kind: {} for kind in ("clean", "noisy")}
    out["together"] = {kind: {} for kind in ("clean", "noisy")}
    scored: dict[tuple[str, str], list[tuple[Trials, NDArray[np.float64]]]] = {}
    say("trials")
    everyone, teaching = make_trials(speech), teaching_trials(speech, POOLING)

    def judge(label: str, some: Sequence[str], whole: list[Trials], taught: list[Trials], judged: set[str]) -> None:
        say(f"leave out {', '.join(sorted(judged))}: {label}, {' + '.join(some)}")
        for kind in ("clean", "noisy"):
            noisy = kind == "noisy"
            if noisy and not speech.copies():
                continue
            tried = [each for each in taught if each.corpus in judged]
            found = left_out_scores(taught, POOLING, some, judged=tried, noisy=noisy)
            scored.setdefault((kind, label), []).extend(found)
            out["left_out"][kind].setdefault(label, {}).update(corpus_by_corpus(found))
            counted = out["one_threshold"][kind].setdefault(label, {})
            rates = at_one_threshold(whole, taught, POOLING, some, noisy=noisy, judged=judged)
            counted |= {corpus: figures for (corpus, design), figures in rates.items() if design == "neutral"}

    def beside(whole: list[Trials], corpora: Sequence[str]) -> tuple[list[Trials], list[Trials]]:
        learnt = learn_moods(speech, whole, corpora, names, count)
        return beside_moods(everyone, speech, learnt), beside_moods(teaching, speech, learnt)

    judge("cosine", ("cosine",), everyone, teaching, set(by_corpus))
    if moods:
        # Nothing of a corpus that is judged is in the moods either: not its directions, its shares, nor its axis.
        for corpus in by_corpus:
            given = [mood for mood in moods if mood != corpus]
            others = [each for each in teaching if each.corpus != corpus]
            whole, taught, some = everyone, teaching, tuple(name for name in names if name != "mood_shift")
            if given and others:
                (whole, taught), some = beside(others, given), names
            judge("cosine beside moods", ("cosine",), whole, taught, {corpus})
            judge("all", some, whole, taught, {corpus})
        everyone, teaching = beside(teaching, moods)
    else:
        judge("all", names, everyone, teaching, set(by_corpus))
    for (kind, label), found in scored.items():
        out["together"][kind][label] = together(found)
    if len({each.corpus for each in teaching}) > 1:
        say("choose terms")
        chosen, out["steps"] = select_terms(teaching, POOLING)
        out["chosen"] = list(chosen)
    out["adaptation"], out["refusals"], out["second_voices"] = {}, {}, {}
    for each in sets:
        corpus = each.clips[0].corpus
        say(f"rehearse {corpus}")
        own = _untouched(by_corpus[corpus])
        out["refusals"][corpus] = dataclasses.asdict(refusals(own, calibration))
        if sessions:
            with contextlib.suppress(ValueError):  # no speaker has clips enough
                out["adaptation"][corpus] = dataclasses.asdict(simulate(own, calibration, sessions=sessions))
        if tries:
            out["second_voices"][corpus] = dataclasses.asdict(second_voices(encoder, each, tries=tries))
    return out


def _join(parts: Iterable[DevelopmentSpeech]) -> DevelopmentSpeech:
    clips: list[Any] = []
    original: list[int] = []
    embeddings, qualities = [], []
    for each in parts:
        original += [len(clips) + i for i in each.original]
        clips += each.clips
        embeddings.append(each.embeddings)
        qualities += each.qualities
    return DevelopmentSpeech(clips, np.concatenate(embeddings), qualities, original)


def _untouched(speech: DevelopmentSpeech) -> DevelopmentSpeech:
    copies = speech.copies()
    kept = [i for i in range(len(speech.clips)) if i not in copies]
    return DevelopmentSpeech(
        [speech.clips[i] for i in kept], speech.embeddings[kept], [speech.qualities[i] for i in kept]
    )


def format_study(found: Mapping[str, Any]) -> str:
    """The tables of `study` in Markdown."""
    beside = f", beside the moods of {', '.join(found['moods'])}" if found["moods"] else ""
    lines = [f"weighs {' + '.join(found['terms'])}{beside}; the rule would keep {' + '.join(found['chosen'])}", ""]
    if found["steps"]:  # none where every corpus gave directions
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
        lines += [f"{kind} tests in other moods, four neutral clips enrolled, the corpus left out of the fit", ""]
        lines += ["EER % / false rejects % at 1 % false accepts / Cllr / least Cllr:", ""]
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
        lines += ["false rejects % / false accepts % at the threshold for 1 in 100 that the other corpora make:", ""]
        lines += _table(
            ["terms", *corpora, "mean"],
            [
                [label, *(_errors(figures[corpus]) for corpus in corpora), _errors(_mean(figures[c] for c in corpora))]
                for label, figures in counted.items()
            ],
        )
    if found["adaptation"]:
        lines += ["Guarded adaptation:", ""]
        lines += _table(
            ["corpus", "owners", "impostor sessions", "learnt from owners", "from impostors",
             "false rejects % before -> after", "false accepts %", "attacker's %"],
            [
                [corpus, str(each["owners"]), str(each["impostor_sessions"]), str(each["learnt_own"]),
                 str(each["learnt_foreign"]),
                 *(f"{100 * each[name + '_before']:.2f} -> {100 * each[name + '_after']:.2f}"
                   for name in ("frr", "far", "attacker"))]
                for corpus, each in found["adaptation"].items()
            ],
        )  # fmt: skip
    lines += ["Refused in enrolment, %:", ""]
    head = ["corpus", "own, other mood", "own, neutral", "others, same gender", "two voices found", "one taken for two"]
    rows = []
    for corpus, each in found["refusals"].items():
        joined = found["second_voices"].get(corpus, {"two_voices": math.nan, "one_voice": math.nan})
        shares = each["own_emotional"], each["own_neutral"], each["others"], joined["two_voices"], joined["one_voice"]
        rows.append([corpus, *map(_percent, shares)])
    lines += _table(head, rows)
    return "\n".join(lines)


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
