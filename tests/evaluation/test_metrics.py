"""Error rates against brute force, above all where scores are equal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.evaluation.metrics import (
    DetCurve,
    bootstrap_far_frr,
    bootstrap_interval,
    cllr,
    det_curve,
    eer,
    far_frr_at,
    frr_at_far,
    min_cllr,
)

# Few distinct values, so that most draws hold ties within and across the two kinds.
tied = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)
loose = st.lists(st.floats(-50, 50, allow_nan=False, width=32), min_size=1, max_size=30)
scores = tied | loose


def every_operating_point(targets, nontargets):
    """(threshold, far, frr) at every threshold that makes a difference, by counting."""
    thresholds = [-math.inf, *sorted(set(targets) | set(nontargets)), math.inf]
    return [
        (t, sum(n >= t for n in nontargets) / len(nontargets), sum(x < t for x in targets) / len(targets))
        for t in thresholds
    ]


def brute_force_eer(targets, nontargets):
    points = every_operating_point(targets, nontargets)
    for (_, far0, frr0), (_, far1, frr1) in itertools.pairwise(points):
        if frr1 >= far1:
            if frr1 == far1:
                return far1
            share = (far0 - frr0) / ((far0 - frr0) + (frr1 - far1))
            return far0 + share * (far1 - far0)
    raise AssertionError("the curve ends at far 0, frr 1")


@given(scores, scores)
def test_eer_equals_the_crossing_found_by_counting_at_every_threshold(targets, nontargets):
    assert eer(targets, nontargets) == pytest.approx(brute_force_eer(targets, nontargets), abs=1e-12)


@given(scores, scores, st.floats(0.001, 0.999))
def test_min_dcf_equals_the_least_cost_found_by_counting(targets, nontargets, prior):
    least = min(prior * frr + (1 - prior) * far for _, far, frr in every_operating_point(targets, nontargets))
    assert det_curve(targets, nontargets).min_dcf(prior) == pytest.approx(least / min(prior, 1 - prior), abs=1e-9)


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.05, 0.1, 1 / 3, 0.5, 1.0]))
def test_frr_at_far_equals_the_least_found_by_counting(targets, nontargets, far_limit):
    # Equality with rates such as 1/3 is compared as counts would compare.
    least = min(frr for _, far, frr in every_operating_point(targets, nontargets) if far <= far_limit * (1 + 1e-12))
    assert frr_at_far(targets, nontargets, far_limit) == pytest.approx(least, abs=1e-12)


@given(scores, scores)
def test_every_vertex_of_the_curve_is_what_its_threshold_gives(targets, nontargets):
    curve = det_curve(targets, nontargets)
    for threshold, far, frr in zip(*curve, strict=True):
        accepted = sum(n >= threshold for n in nontargets) / len(nontargets)
        rejected = sum(t < threshold for t in targets) / len(targets)
        assert (far, frr) == (pytest.approx(accepted, abs=1e-12), pytest.approx(rejected, abs=1e-12))
    assert (np.diff(curve.far) <= 1e-15).all() and (np.diff(curve.frr) >= -1e-15).all()


@given(scores, scores)
def test_eer_ignores_the_order_of_trials_and_any_rising_map_of_scores(targets, nontargets):
    def rising(values):
        return [4.0 * v for v in values]  # exact in floating point: a map that rounds could make new ties

    expected = eer(targets, nontargets)
    assert eer(targets[::-1], nontargets[::-1]) == expected
    assert eer(rising(targets), rising(nontargets)) == pytest.approx(expected, abs=1e-12)


@given(scores, scores)
def test_swapping_the_kinds_and_the_sign_leaves_the_eer(targets, nontargets):
    swapped = eer([-n for n in nontargets], [-t for t in targets])
    assert swapped == pytest.approx(eer(targets, nontargets), abs=1e-12)


def test_known_values():
    assert eer([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert eer([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert eer([1.0, 1.0], [1.0]) == 0.5  # all equal: a coin
    assert eer([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.7, 2.5]) == 0.25
    assert det_curve([2.0, 3.0], [0.0, 1.0]).min_dcf(0.01) == 0.0
    assert det_curve([0.0], [1.0]).min_dcf(0.01) == 1.0  # rejecting everything costs 1
    assert frr_at_far([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.7, 2.5], 0.25) == 0.0
    assert frr_at_far([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.7, 2.5], 0.24) == 0.5
    assert far_frr_at([1.0, 2.0], [1.0, 3.0, 0.0], 1.0) == (pytest.approx(2 / 3), 0.0)


def test_float32_scores_are_compared_as_float32():
    third = np.float32(1 / 3)
    assert eer(np.array([third]), np.array([third])) == 0.5
    assert far_frr_at(np.array([third]), np.array([third]), float(third)) == (1.0, 0.0)


def test_infinite_scores_are_ordered_and_nan_is_refused():
    assert eer([math.inf, 1.0], [-math.inf, 0.0]) == 0.0
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        eer([math.nan, 1.0], [0.0])


@pytest.mark.parametrize("targets, nontargets", [([], [1.0]), ([1.0], []), ([[1.0]], [1.0])])
def test_missing_or_misshapen_trials_are_refused(targets, nontargets):
    with pytest.raises(ValueError, match=r"no (targets|non-targets) at all|expected targets of shape"):
        eer(targets, nontargets)


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0, math.nan])
def test_a_prior_outside_0_to_1_is_refused(prior):
    with pytest.raises(ValueError, match="prior between 0 and 1"):
        det_curve([1.0], [0.0]).min_dcf(prior)


@given(loose, loose)
def test_cllr_equals_its_definition_in_plain_logarithms(targets, nontargets):
    miss = sum(math.log2(1 + math.exp(-t)) for t in targets) / len(targets)
    false_accept = sum(math.log2(1 + math.exp(n)) for n in nontargets) / len(nontargets)
    assert cllr(targets, nontargets) == pytest.approx((miss + false_accept) / 2, rel=1e-6, abs=1e-9)


def test_cllr_of_no_information_is_one_bit():
    assert cllr([0.0, 0.0], [0.0]) == pytest.approx(1.0)
    assert cllr([math.inf], [-math.inf]) == 0.0
    assert cllr([-math.inf], [0.0]) == math.inf


def isotonic_cllr(targets, nontargets):
    """min_cllr by the textbook: weighted isotonic regression through min-max of block means."""
    values = sorted(set(targets) | set(nontargets))
    a = [sum(t == v for t in targets) for v in values]
    b = [sum(n == v for n in nontargets) for v in values]
    total = 0.0
    for k in range(len(values)):
        # isotonic fit at k = max over i <= k of min over j >= k of the mean on [i, j]
        share = max(
            min(sum(a[i : j + 1]) / (sum(a[i : j + 1]) + sum(b[i : j + 1])) for j in range(k, len(values)))
            for i in range(k + 1)
        )
        odds = math.inf if share == 1 else share / (1 - share) / (len(targets) / len(nontargets))
        if a[k]:
            total += a[k] / len(targets) * math.log2(1 + 1 / odds)
        if b[k]:
            total += b[k] / len(nontargets) * math.log2(1 + odds)
    return total / 2


@given(
    st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=10),
    st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=10),
)
@settings(max_examples=60)
def test_min_cllr_equals_isotonic_regression_by_brute_force(targets, nontargets):
    assert min_cllr(targets, nontargets) == pytest.approx(isotonic_cllr(targets, nontargets), abs=1e-9)


@given(scores, scores)
def test_min_cllr_is_at_most_cllr_and_at_most_one_bit(targets, nontargets):
    least = min_cllr(targets, nontargets)
    assert -1e-12 <= least <= min(1.0, cllr(targets, nontargets)) + 1e-9


def speakers_and_trials(num_speakers, clips, seed, spread=0.5):
    """All pairs of clips; each speaker has their own difficulty, so that trials of one are alike."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(num_speakers), clips)
    ease = rng.normal(0, spread, num_speakers)
    left, right = np.triu_indices(len(speaker), 1)
    same = speaker[left] == speaker[right]
    values = rng.normal(0, 1, len(left)) + np.where(same, 2.5 + ease[speaker[left]], 0.0)
    return values, same, speaker[left], speaker[right]


def interval_of(values, same, left, right, seed=0, **options):
    others = np.stack((left[~same], right[~same]), axis=1)
    return bootstrap_interval(values[same], values[~same], left[same], others, np.random.default_rng(seed), **options)


def test_bootstrap_equals_evaluating_each_resample_with_its_trials_repeated():
    values, same, left, right = speakers_and_trials(5, 3, seed=1)
    interval = interval_of(values, same, left, right, seed=7, resamples=40)
    rng, figures = np.random.default_rng(7), []
    for _ in range(40):
        times = np.bincount(rng.integers(0, 5, 5), minlength=5)
        targets = np.repeat(values[same], times[left[same]])
        nontargets = np.repeat(values[~same], times[left[~same]] * times[right[~same]])
        if len(targets) and len(nontargets):
            figures.append(brute_force_eer(targets.tolist(), nontargets.tolist()))
    low, high = np.percentile(figures, (2.5, 97.5))
    assert interval == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9), len(figures))


def test_bootstrap_interval_depends_on_the_seed_alone_and_holds_the_figure():
    values, same, left, right = speakers_and_trials(20, 4, seed=2)
    first = interval_of(values, same, left, right, seed=3, resamples=200)
    assert first == interval_of(values, same, left, right, seed=3, resamples=200)
    assert first != interval_of(values, same, left, right, seed=4, resamples=200)
    assert first.low <= eer(values[same], values[~same]) <= first.high


def test_bootstrap_interval_narrows_with_more_speakers():
    def width(num_speakers):
        low, high, _ = interval_of(*speakers_and_trials(num_speakers, 4, seed=5), resamples=200)
        return high - low

    assert width(60) < 0.7 * width(10)


def test_bootstrap_interval_covers_the_truth_about_95_times_of_100():
    truth = np.mean([eer(v[s], v[~s]) for v, s, *_ in (speakers_and_trials(300, 3, seed) for seed in range(4))])
    covered = 0
    for seed in range(60):
        low, high, _ = interval_of(*speakers_and_trials(25, 3, seed=1000 + seed), resamples=100)
        covered += low <= truth <= high
    assert covered >= 51  # 57 expected; fewer than 51 has a chance of 0.6 %


def test_bootstrap_of_rates_covers_the_actual_rates():
    values, same, left, right = speakers_and_trials(20, 4, seed=6)
    others = np.stack((left[~same], right[~same]), axis=1)
    rng = np.random.default_rng(0)
    far, frr = bootstrap_far_frr(values[same], values[~same], 1.2, left[same], others, rng, resamples=200)
    actual = far_frr_at(values[same], values[~same], 1.2)
    assert far.low <= actual[0] <= far.high and frr.low <= actual[1] <= frr.high
    assert far.high - far.low < 0.1


def test_bootstrap_of_any_statistic_of_the_curve():
    values, same, left, right = speakers_and_trials(20, 4, seed=6)
    low, high, _ = interval_of(values, same, left, right, statistic=lambda c: c.min_dcf(0.05), resamples=100)
    assert low <= det_curve(values[same], values[~same]).min_dcf(0.05) <= high


def test_bootstrap_without_enough_speakers_is_refused():
    one = np.zeros(2, int)
    with pytest.raises(ValueError, match="too few to draw from"):
        # The non-targets are between speakers 0 and 1, the targets of neither.
        bootstrap_interval(
            [1.0, 2.0], [0.0], one + 2, np.array([[0, 0]]), np.random.default_rng(0), DetCurve.eer, resamples=0
        )
    with pytest.raises(ValueError, match="two for each of 1 non-targets"):
        bootstrap_interval([1.0, 2.0], [0.0], one, np.array([0]), np.random.default_rng(0))
