"""What arms differ by: paired, over speakers, and the difference that the speakers could have shown."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from train.evaluation.clips import Recording
from train.evaluation.metrics import eer
from train.evaluation.protocols import make_trials
from train.power import Judged, changes, format_changes, read_judged, save_judged


def run(arm, noise, seed=1, fold="a", corpora=("toy", "other"), speakers=12, drawn=0):
    """Clips of speakers at random places, each clip so far from its speaker's."""
    clips, embeddings = {}, {}
    for number, corpus in enumerate(corpora):
        rng = np.random.default_rng((drawn, number, ord(fold)))
        of_run = np.random.default_rng((drawn, number, ord(fold), seed))
        rows = [
            Recording("", corpus, f"{corpus}-{fold}{speaker}", "", emotion, 0.0)
            for speaker in range(speakers)
            for emotion in ("neutral", "angry", "sad")
        ]
        places = np.repeat(rng.normal(size=(speakers, 8)), 3, axis=0)
        found = places + noise * of_run.normal(size=(len(rows), 8))
        clips[corpus] = rows
        embeddings[corpus] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return Judged(arm, seed, fold, clips, embeddings)


def test_equal_arms_do_not_differ_and_the_interval_is_nothing():
    aam = [run("aam", 1.0, seed) for seed in (1, 2)]
    (same,) = changes([*aam, *(dataclasses.replace(each, arm="same") for each in aam)], resamples=20)
    assert same.seeds == 2 and same.merged == same.mean == 0.0
    assert same.merged_interval == same.mean_interval == (0.0, 0.0) and same.detectable == 0.0


def test_a_better_arm_lies_below_nothing_with_an_interval_below_it_too():
    runs = [run(arm, noise, seed) for seed in (1, 2, 3) for arm, noise in (("aam", 1.2), ("better", 0.7))]
    (better,) = changes(runs, resamples=100)
    low, high = better.merged_interval
    assert low < better.merged < high < 0 and better.merged < -0.2 and better.mean < -0.2
    assert 0 < better.detectable < 1


def test_error_rates_agree_with_the_exact_ones_over_corpora_and_folds():
    runs = [run(arm, noise, fold=fold) for fold in "ab" for arm, noise in (("aam", 1.2), ("other", 1.0))]
    (found,) = changes(runs, resamples=2)

    def exact(arm, corpora):
        same, different = [], []
        for each in runs:
            for corpus in corpora if each.arm == arm else ():
                trials = make_trials(each.clips[corpus], "pairs")
                scores = trials.scores(each.embeddings[corpus])
                same.append(scores[trials.target])
                different.append(scores[~trials.target])
        return eer(np.concatenate(same), np.concatenate(different))

    both = ("toy", "other")
    assert found.eer == pytest.approx(exact("other", both), abs=2e-3)
    assert found.merged == pytest.approx(exact("other", both) / exact("aam", both) - 1, abs=0.02)
    means = [np.mean([exact(arm, [corpus]) for corpus in both]) for arm in ("other", "aam")]
    assert found.mean == pytest.approx(means[0] / means[1] - 1, abs=0.02)


def test_more_speakers_can_show_a_smaller_difference():
    def detectable(speakers):
        runs = [run(arm, noise, speakers=speakers) for arm, noise in (("aam", 1.2), ("other", 1.15))]
        return changes(runs, resamples=60)[0].detectable

    assert detectable(40) < 0.8 * detectable(8)


def test_many_trials_of_different_speakers_are_thinned_without_changing_the_figure_much(monkeypatch):
    runs = [run(arm, noise, speakers=30) for arm, noise in (("aam", 1.2), ("other", 0.9))]
    (whole,) = changes(runs, resamples=2)
    monkeypatch.setattr("train.power.MOST_NONTARGETS", 2000)
    (few,) = changes(runs, resamples=2)
    assert few.eer == pytest.approx(whole.eer, abs=0.02)


def test_an_arm_that_lacks_a_fold_or_a_baseline_that_is_not_there_is_refused():
    runs = [run("aam", 1.0), run("aam", 1.0, fold="b"), run("other", 1.0)]
    with pytest.raises(ValueError, match="arm other, seed 1: no run of the fold b"):
        changes(runs, resamples=2)
    with pytest.raises(ValueError, match="no run of the arm aam"):
        changes([run("other", 1.0)], resamples=2)


def test_too_few_speakers_or_no_errors_give_no_figure_instead_of_a_wrong_one():
    (few,) = changes([run("aam", 1.2, speakers=2), run("other", 1.1, speakers=2)], resamples=10)
    assert np.isnan(few.merged_interval).all() or few.merged_interval[0] <= few.merged_interval[1]
    (faultless,) = changes([run("aam", 1e-3), run("other", 1e-3)], resamples=5)
    assert np.isnan(faultless.merged) and np.isnan(faultless.detectable)


def test_what_is_kept_is_read_back(tmp_path):
    made = run("+cosine", 1.0, seed=3)
    path = tmp_path / "judged" / "abc +cosine 3.npz"
    path.parent.mkdir()
    save_judged(path, made.clips, made.embeddings)
    (found,) = read_judged([path])
    assert (found.arm, found.seed) == ("+cosine", 3) and found.clips == made.clips
    np.testing.assert_array_equal(found.embeddings["toy"], made.embeddings["toy"])
    with pytest.raises(ValueError, match="no such file; delete"):
        read_judged([path.with_name("abc aam 3.npz")])


def test_the_table_holds_change_interval_and_what_could_have_been_shown():
    runs = [run(arm, noise) for arm, noise in (("aam", 1.2), ("better", 0.8))]
    lines = format_changes(changes(runs, resamples=10)).splitlines()
    assert "against aam %" in lines[0] and "detectable %" in lines[0]
    assert lines[2].startswith("| better | 1 |") and " to " in lines[2] and "four of five" in lines[-1]
