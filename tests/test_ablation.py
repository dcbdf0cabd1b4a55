"""The table of the method's parts: same compute, no speaker on both sides, resumable, honest bookkeeping."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from training import TINY_SPEC, prepared, random_embeddings, tiny_encoder, write_morphs

from train.ablation import ARMS, Arm, Budget, ablate, format_table, split_speakers, train_arm, views_of
from train.pairs import MorphedSet, PairBatches, Recipe

BUDGET = Budget(steps=4, pairs=2, pool_batches=3, warmup_steps=1)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    sets = [
        prepared(root / name, name, speakers=8, emotions=("neutral", "angry", "sad"), takes=2, seconds=0.5)
        for name in ("toy", "other")
    ]
    return [(each, random_embeddings(each)) for each in sets]


def few(*names):
    chosen = [arm for arm in ARMS if arm.name in names]
    return [dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, min_s=0.4, max_s=0.4)) for arm in chosen]


def test_training_and_development_share_no_speaker_whatever_the_order():
    speakers = [f"toy-{n}" for n in range(40)]
    train, develop = split_speakers(speakers)
    assert not train & develop and train | develop == set(speakers)
    assert (train, develop) == split_speakers(speakers[::-1] * 2)
    assert len(train) == 24
    with pytest.raises(ValueError, match="3 speakers cannot be split"):
        split_speakers(["a", "b", "c"])


def test_every_part_is_added_to_the_arm_before_it():
    arms = {arm.name: arm.recipe for arm in ARMS}
    ladder = [arms[name] for name in ("aam", "+copypaste", "+cosine", "+masking")]
    changes = []
    for before, after in itertools.pairwise(ladder):
        a, b = dataclasses.asdict(before), dataclasses.asdict(after)
        changes.append({name for name in a if a[name] != b[name]})
    assert changes == [{"copy_paste"}, {"pair_weight"}, {"mask"}]


def test_controls_differ_from_the_full_method_in_one_thing():
    arms = {arm.name: dataclasses.asdict(arm.recipe) for arm in ARMS}
    for name, part in (("random-mask", "mask_region"), ("lambda-0", "pair_weight"), ("no-copypaste", "copy_paste")):
        assert {key for key in arms[name] if arms[name][key] != arms["+masking"][key]} == {part}


def test_the_issue_asks_for_these_arms():
    wanted = {
        "aam", "+copypaste", "+cosine", "+masking", "random-mask", "low-mask", "both-mask", "lambda-rise", "lambda-0",
        "no-copypaste", "contrast", "hard", "channels", "short", "targets", "prosody", "all",
    }  # fmt: skip
    assert wanted <= {arm.name for arm in ARMS}
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_every_arm_has_crops_of_the_same_mean_length_and_the_same_margin():
    assert len({(round(arm.recipe.min_s + arm.recipe.max_s, 6), arm.recipe.margin) for arm in ARMS}) == 1


def test_arms_that_differ_in_losses_alone_share_their_views():
    arms = {arm.name: arm.recipe for arm in ARMS}
    assert views_of(arms["+copypaste"]) == views_of(arms["+cosine"])
    assert views_of(arms["+masking"]) == views_of(arms["lambda-0"]) == views_of(arms["contrast"])
    assert views_of(arms["+masking"]) == views_of(arms["lambda-rise"]) != views_of(arms["hard"])
    assert views_of(arms["+cosine"]) != views_of(arms["+masking"]) != views_of(arms["random-mask"])
    assert views_of(arms["aam"]) != views_of(arms["targets"])


def test_the_table_is_filled_and_a_second_call_trains_nothing(corpora, tmp_path, monkeypatch):
    arms = few("aam", "+copypaste", "+cosine")
    said = []
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, arms, (1, 2), BUDGET, say=said.append)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("start", 0), ("aam", 1), ("+copypaste", 1), ("+cosine", 1), ("aam", 2), ("+copypaste", 2), ("+cosine", 2),
    ]  # fmt: skip
    assert all(0 <= row["merged"] <= 1 and {"toy pairs", "other pairs", "toy neutral"} <= set(row) for row in rows)
    assert rows[0]["mean"] == pytest.approx((rows[0]["toy pairs"] + rows[0]["other pairs"]) / 2)
    assert not list((tmp_path / "pools").iterdir())  # nothing is left of the kept activations
    assert "10 training and 6 development speakers" in said[0]

    monkeypatch.setattr("train.ablation.train_arm", lambda *_: pytest.fail("trained again"))
    again = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, arms, (1, 2), BUDGET)
    assert again == rows

    table = format_table(rows)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["start", "aam", "+copypaste", "+cosine"]
    assert "±" in lines[3]


def test_a_run_that_was_stopped_goes_on_to_the_same_figures(corpora, tmp_path, monkeypatch):
    arms = few("aam", "+copypaste", "+cosine")
    whole = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "whole", arms, (1,), BUDGET)
    import train.ablation as ablation

    real, calls = ablation.train_arm, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ablation, "train_arm", stops)
    with pytest.raises(KeyboardInterrupt):
        ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "cut", arms, (1,), BUDGET)
    resumed = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "cut", arms, (1,), BUDGET)

    def figures(rows):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert figures(resumed) == figures(whole)


def test_another_setting_does_not_reuse_the_results(corpora, tmp_path):
    arms = few("aam")
    first = ablate(tiny_encoder(0), TINY_SPEC, corpora, tmp_path, arms, (1,), BUDGET)
    second = ablate(tiny_encoder(1), TINY_SPEC, corpora, tmp_path, arms, (1,), BUDGET)
    assert first[0]["merged"] != second[0]["merged"]
    longer = dataclasses.replace(BUDGET, steps=8)
    assert ablate(tiny_encoder(0), TINY_SPEC, corpora, tmp_path, arms, (1,), longer)[1] != first[1]


def test_arms_that_need_morphs_are_left_out_aloud_without_them_and_run_with_them(corpora, tmp_path):
    said = []
    arms = few("aam", "prosody")
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "a", arms, (1,), BUDGET, say=said.append)
    assert "left out for want of --morphs: prosody" in said and [row["arm"] for row in rows] == ["start", "aam"]

    plain = prepared(tmp_path / "plain", "plain", speakers=3, emotions=("neutral",), takes=2, seconds=0.5)
    write_morphs(tmp_path / "morphs", plain)
    rows = ablate(
        tiny_encoder(), TINY_SPEC, corpora, tmp_path / "b", arms, (1,), BUDGET,
        ordinary=[(plain, random_embeddings(plain))], morphs=[MorphedSet(tmp_path / "morphs")],
    )  # fmt: skip
    assert [row["arm"] for row in rows] == ["start", "aam", "prosody"]


def test_the_arm_with_channels_is_left_out_aloud_without_noises_and_runs_with_them(corpora, tmp_path):
    said = []
    arms = few("aam", "channels", "hard", "short", "lambda-rise")
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "a", arms, (1,), BUDGET, say=said.append)
    assert "left out for want of --noise: channels" in said
    assert [row["arm"] for row in rows] == ["start", "aam", "lambda-rise", "hard", "short"]
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    rows = ablate(
        tiny_encoder(), TINY_SPEC, corpora, tmp_path / "b", few("channels"), (1,), BUDGET, noises=[noise],
        rooms=[np.float32([1.0, 0.0, 0.3])],
    )  # fmt: skip
    assert [row["arm"] for row in rows] == ["start", "channels"]


def test_training_from_kept_activations_moves_what_training_from_features_would(corpora):
    """The first step's gradient is that of the whole encoder with its lower stages frozen."""
    from train.ablation import Top, _below, _like_weights
    from train.losses import AngularMarginSoftmax, pair_loss

    encoder = tiny_encoder()
    recipe = Recipe(copy_paste=0.5, morph=0, mask=0.5, channel=0, own_share=0, min_s=0.4, max_s=0.4)
    from train.pairs import Source

    batches = PairBatches([Source(*corpora[0], 1.0)], TINY_SPEC, recipe, 4, 1, 0)
    batch = batches[0]
    softmax = AngularMarginSoftmax(torch.from_numpy(batches.centres))

    def gradient(embeddings, parameters):
        first, second = embeddings.chunk(2)
        loss = softmax(embeddings, batch["labels"], 0.1) + pair_loss(first, second)
        return torch.autograd.grad(loss, parameters)

    top = Top(encoder)
    kept = gradient(top(_like_weights(_below(encoder, batch["features"]))), list(top.stage.parameters()))
    whole = gradient(encoder(batch["features"]), list(encoder.stages[-1].parameters()))
    for a, b in zip(kept, whole, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_training_leaves_the_encoder_it_starts_from_untouched(corpora, tmp_path):
    encoder = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    ablate(encoder, TINY_SPEC, corpora, tmp_path, few("aam"), (1,), BUDGET)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_training_lowers_the_loss_that_it_is_given(corpora, tmp_path):
    from train.ablation import Pool, _like_weights
    from train.losses import pair_loss
    from train.pairs import Source

    encoder = tiny_encoder()
    recipe = Recipe(
        copy_paste=0, morph=0, mask=0, channel=0, own_share=0, pair_weight=1.0, softmax_weight=0.0, speaker_target=0.0,
        own_target=0.0, min_s=0.4, max_s=0.4,
    )  # fmt: skip
    batches = PairBatches([Source(*corpora[0], 1.0)], TINY_SPEC, recipe, 8, 4, 0)
    pool = Pool(tmp_path, encoder, batches, 4)
    pool.fill()

    def loss(steps):
        budget = Budget(steps=steps, pairs=8, pool_batches=4, rate=3e-3, warmup_steps=1)
        top = train_arm(encoder, batches.centres, pool, recipe, budget, 1)
        with torch.no_grad():
            parts = [pair_loss(*top(_like_weights(pool[k]["activations"])).chunk(2)) for k in range(4)]
        return float(np.mean(parts))

    assert loss(40) < 0.7 * loss(0)


def test_a_custom_arm_needs_no_registration(corpora, tmp_path):
    mine = Arm("mine", dataclasses.replace(few("aam")[0].recipe, pair_weight=2.0), "my own")
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, [mine], (1,), BUDGET)
    assert "mine: my own" in format_table(rows, [mine])
