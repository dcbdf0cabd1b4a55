"""The protocols against brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.builders import synthesise
from tests.evaluation.population import Clip, brute_force, population
from train.evaluation.clips import EvaluationSet, thin
from train.evaluation.metrics import det_curve, eer, frr_at_far
from train.evaluation.protocols import PROTOCOLS, cross, evaluate_embeddings, make_trials
from train.evaluation.report import format_table


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_equals_its_description_trial_by_trial(protocol):
    clips, embeddings = population()
    scores, target = brute_force(clips, embeddings, protocol)
    result = evaluate_embeddings(embeddings, clips)[protocol]
    assert (result["targets"], result["nontargets"]) == (target.sum(), (~target).sum())
    assert result["eer"] == pytest.approx(eer(scores[target], scores[~target]), abs=1e-6)
    assert result["frr_at_far"]["0.01"] == pytest.approx(frr_at_far(scores[target], scores[~target], 0.01), abs=1e-6)
    assert result["min_dcf"]["0.05"] == pytest.approx(
        det_curve(scores[target], scores[~target]).min_dcf(0.05), abs=1e-6
    )


def test_emotion_pairs_and_genders_split_the_trials_without_loss():
    clips, embeddings = population()
    result = evaluate_embeddings(embeddings, clips)
    for protocol, group in (("pairs", "by_emotion_pair"), ("same", "by_emotion_pair"), ("enrol", "by_emotion")):
        for key in (group, "by_gender", "by_duration"):
            parts = result[protocol][key]
            assert sum(part["targets"] for part in parts.values()) == result[protocol]["targets"]
            assert sum(part["nontargets"] for part in parts.values()) == result[protocol]["nontargets"]
    assert set(result["pairs"]["by_emotion_pair"]) == {"angry/neutral", "angry/sad", "neutral/sad"}
    assert set(result["same"]["by_emotion_pair"]) == {"angry/angry", "neutral/neutral", "sad/sad"}
    assert set(result["pairs"]["by_gender"]) == {"female", "male"}


def test_one_emotion_pair_equals_the_eer_of_its_own_trials():
    clips, embeddings = population(seed=3)
    chosen = [i for i, clip in enumerate(clips) if clip.emotion in ("angry", "sad")]
    alone = evaluate_embeddings(embeddings[chosen], [clips[i] for i in chosen])
    whole = evaluate_embeddings(embeddings, clips)
    assert whole["pairs"]["by_emotion_pair"]["angry/sad"]["eer"] == alone["pairs"]["eer"]


def test_level_of_embeddings_does_not_matter():
    clips, embeddings = population()
    scaled = embeddings * np.random.default_rng(1).uniform(0.1, 50, (len(embeddings), 1))
    assert evaluate_embeddings(scaled, clips)["pairs"]["eer"] == pytest.approx(
        evaluate_embeddings(embeddings, clips)["pairs"]["eer"], abs=2e-3
    )


def test_genders_are_compared_only_where_both_are_known():
    clips = [Clip("a", "male"), Clip("a", "male"), Clip("b", "female"), Clip("c", "")]
    trials = make_trials(clips, "same")
    pairs = set(zip(trials.enrol.tolist(), trials.test.tolist(), strict=True))
    assert pairs == {(0, 1), (0, 3), (1, 3), (2, 3)}


def test_clips_without_a_speaker_or_emotion_take_no_part_across_emotions():
    clips = [Clip("a", emotion="angry"), Clip("a"), Clip("", emotion="sad"), *[Clip("b", emotion="")] * 2]
    assert make_trials(clips, "pairs").enrol.tolist() == [0]
    same = make_trials(clips, "same")
    assert list(zip(same.enrol.tolist(), same.test.tolist(), strict=True)) == [(3, 4)]


def test_a_profile_is_the_first_four_neutral_clips_in_manifest_order():
    clips = [Clip("a"), Clip("a", emotion="sad"), *[Clip("a")] * 5, Clip("b"), Clip("b", emotion="sad")]
    trials = make_trials(clips, "enrol")
    assert trials.profiles == ((0, 2, 3, 4),)  # b has too few neutral clips
    assert trials.test.tolist() == [1, 8] and trials.target.tolist() == [True, False]


def test_protocols_without_trials_of_both_kinds_are_left_out():
    clips = [Clip("a"), Clip("a"), Clip("b"), Clip("b")]
    result = evaluate_embeddings(np.eye(4, dtype=np.float32), clips)
    assert set(result) == {"clips", "clips_used", "speakers", "neutral", "same"}
    with pytest.raises(ValueError, match="expected a protocol of"):
        make_trials(clips, "enroll")


def test_zero_nan_or_missing_embeddings_are_refused():
    clips = [Clip("a"), Clip("b")]
    for bad in (0.0, np.nan):
        with pytest.raises(ValueError, match="1 of 2 embeddings are zero or not finite, the first is row 1"):
            evaluate_embeddings(np.array([[1.0, 0.0], [bad, 0.0]]), clips)
    with pytest.raises(ValueError, match="got 1 for 2 clips"):
        evaluate_embeddings(np.ones((1, 2)), clips)


def test_thinning_keeps_every_speaker_and_emotion_and_is_reported():
    clips, embeddings = population(clips=20)
    kept = thin(clips, 90)
    assert len(kept) == 90 and (np.diff(kept) > 0).all()
    cells = {(clips[i].speaker, clips[i].emotion) for i in kept}
    assert len(cells) == 6 * 3
    result = evaluate_embeddings(embeddings, clips, max_clips=90)
    assert (result["clips"], result["clips_used"]) == (360, 90)
    assert thin(clips, 360).tolist() == list(range(360))


def test_intervals_hold_the_figure_and_do_not_depend_on_the_other_protocols():
    clips, embeddings = population(speakers=10)
    both = evaluate_embeddings(embeddings, clips, resamples=100)
    alone = evaluate_embeddings(embeddings, clips, protocols=["pairs"], resamples=100)
    low, high = both["pairs"]["eer_interval"]
    assert low <= both["pairs"]["eer"] <= high
    assert alone["pairs"] == both["pairs"]


def test_results_are_plain_json():
    clips, embeddings = population()
    result = evaluate_embeddings(embeddings, clips, resamples=10)
    assert json.loads(json.dumps(result)) == result


def test_the_table_has_a_line_for_each_set_and_protocol():
    clips, embeddings = population()
    table = format_table({"mine": evaluate_embeddings(embeddings, clips)})
    lines = table.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["mine", protocol] for protocol in PROTOCOLS]


def test_evaluation_set_of_arrays_can_be_built_by_hand():
    clips = [Clip("a"), Clip("b")]
    made = EvaluationSet("two", clips, lambda index: synthesise(1.0, index))
    assert evaluate_embeddings(np.eye(2, dtype=np.float32), made)["clips"] == 2


def test_every_profile_meets_every_test_of_its_gender_and_an_unknown_gender_meets_both():
    clips = [Clip("a", "male"), Clip("b", "female"), Clip("a", "male"), Clip("c")]
    trials = cross(clips, [(0,), (1,)], [2, 3])
    met = list(zip(trials.enrol.tolist(), trials.test.tolist(), trials.target.tolist(), strict=True))
    assert met == [(0, 2, True), (0, 3, False), (1, 3, False)]
    assert trials.owner.tolist() == [0, 0, 1]
    assert len(cross(clips, [], [2, 3]).test) == 0
