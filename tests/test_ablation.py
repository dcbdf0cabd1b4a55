"""The table of the method's parts: same compute, no speaker on both sides, resumable, honest bookkeeping."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.training import TINY_SPEC, prepared, random_embeddings, tiny_encoder
from train import ablation
from train.ablation import ARMS, Arm, Budget, Pool, ablate, format_table, train_arm, views_of
from train.finetune import FineTuned
from train.folds import folds, split_speakers
from train.losses import pair_loss
from train.model import autocast
from train.pairs import PairBatches, Recipe, Source
from train.power import read_judged
from train.schedule import Schedule

SCHEDULE = Schedule(steps=4, rate=2e-4, warmup_steps=1, floor=0.0)
BUDGET = Budget(SCHEDULE, pairs=2, pool_batches=3)


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
    for name, part in (("random-mask", "mask_region"), ("no-copypaste", "copy_paste")):
        assert {key for key in arms[name] if arms[name][key] != arms["+masking"][key]} == {part}


def test_every_arm_has_a_name_of_its_own():
    assert len({arm.name for arm in ARMS}) == len(ARMS) == 6


def test_every_arm_has_crops_of_the_same_mean_length_and_the_same_margin():
    assert len({(round(arm.recipe.min_s + arm.recipe.max_s, 6), arm.recipe.margin) for arm in ARMS}) == 1


def test_arms_that_differ_in_losses_alone_share_their_views():
    arms = {arm.name: arm.recipe for arm in ARMS}
    assert views_of(arms["+copypaste"]) == views_of(arms["+cosine"])
    assert views_of(arms["+cosine"]) != views_of(arms["+masking"]) != views_of(arms["random-mask"])


def test_the_table_is_filled_and_a_second_call_trains_nothing(corpora, tmp_path, monkeypatch):
    arms = few("aam", "+copypaste", "+cosine")
    lines = []
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, arms, (1, 2), BUDGET, log=lines.append)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("start", 0), ("aam", 1), ("+copypaste", 1), ("+cosine", 1), ("aam", 2), ("+copypaste", 2), ("+cosine", 2),
    ]  # fmt: skip
    assert all(0 <= row["merged"] <= 1 and {"toy pairs", "other pairs", "toy neutral"} <= set(row) for row in rows)
    assert rows[0]["mean"] == pytest.approx((rows[0]["toy pairs"] + rows[0]["other pairs"]) / 2)
    assert not [*(tmp_path / "pools").iterdir(), *(tmp_path / "runs").iterdir()]  # the table is what stays
    assert "10 training and 6 development speakers" in lines[0]

    monkeypatch.setattr(ablation, "train_arm", lambda *_: pytest.fail("trained again"))
    again = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, arms, (1, 2), BUDGET)
    assert again == rows

    table = format_table(rows)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["start", "aam", "+copypaste", "+cosine"]
    assert "±" in lines[3]


def test_a_baseline_without_errors_leaves_nothing_to_reduce():
    rows = [{"arm": arm, "seed": 1, "merged": 0.0, "mean": 0.0, "mine pairs": 0.0} for arm in ("aam", "+cosine")]
    assert "| +cosine | 1 | 0.00 |  | 0.00 | 0.00 |" in format_table(rows)


def test_a_run_that_was_stopped_goes_on_to_the_same_figures(corpora, tmp_path, monkeypatch):
    arms = few("aam", "+copypaste", "+cosine")
    whole = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path / "whole", arms, (1,), BUDGET)
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
        return [{name: value for name, value in row.items() if name not in ("seconds", "judged")} for row in rows]

    assert figures(resumed) == figures(whole)


def test_another_setting_does_not_reuse_the_results(corpora, tmp_path):
    arms = few("aam")
    first = ablate(tiny_encoder(0), TINY_SPEC, corpora, tmp_path, arms, (1,), BUDGET)
    second = ablate(tiny_encoder(1), TINY_SPEC, corpora, tmp_path, arms, (1,), BUDGET)
    assert first[0]["merged"] != second[0]["merged"]
    longer = dataclasses.replace(BUDGET, schedule=dataclasses.replace(SCHEDULE, steps=8))
    assert ablate(tiny_encoder(0), TINY_SPEC, corpora, tmp_path, arms, (1,), longer)[1] != first[1]


def test_an_arm_that_was_stopped_goes_on_to_the_same_weights(corpora, tmp_path, monkeypatch):
    encoder, recipe = tiny_encoder(), few("+cosine")[0].recipe
    batches = PairBatches([Source(*corpora[0], 1.0)], TINY_SPEC, recipe, 2, 3, 0)
    pool = Pool(tmp_path / "pool", encoder, batches, 3)
    pool.fill()
    schedule = dataclasses.replace(SCHEDULE, checkpoint_every_s=0.0)

    def train(out):
        return train_arm(encoder, TINY_SPEC, batches.centres, pool, recipe, schedule, 1, out)

    class Stopping(Pool):
        read = 0

        def __getitem__(self, number):
            Stopping.read += 1
            if Stopping.read == 3:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    whole = train(tmp_path / "whole")
    pool.__class__ = Stopping
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    assert all(
        torch.equal(value, whole.state_dict()[name]) for name, value in train(tmp_path / "cut").state_dict().items()
    )


def test_training_from_kept_activations_moves_what_training_from_features_would(corpora, tmp_path):
    """The first step's gradient is that of the whole encoder with its lower stages frozen."""
    encoder = tiny_encoder()
    recipe = Recipe(copy_paste=0.5, morph=0, mask=0.5, channel=0, own_share=0, min_s=0.4, max_s=0.4, softmax_weight=1)
    batches = PairBatches([Source(*corpora[0], 1.0)], TINY_SPEC, recipe, 4, 1, 0)
    pool = Pool(tmp_path, encoder, batches, 1)
    pool.fill()
    tuned = FineTuned(encoder, torch.from_numpy(batches.centres), recipe, 2)
    learning = list(encoder.stages[-1].parameters())

    def gradient(embeddings):
        return torch.autograd.grad(tuned.losses(embeddings, batches[0], 0.1)["loss"], learning)

    with autocast():
        kept = gradient(tuned.above(pool[0]["activations"]).float())
    whole = gradient(encoder(batches[0]["features"]))
    for a, b in zip(kept, whole, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_training_leaves_the_encoder_it_starts_from_untouched(corpora, tmp_path):
    encoder = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    ablate(encoder, TINY_SPEC, corpora, tmp_path, few("aam"), (1,), BUDGET)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_training_lowers_the_loss_that_it_is_given(corpora, tmp_path):
    encoder = tiny_encoder()
    recipe = Recipe(
        copy_paste=0, morph=0, mask=0, channel=0, own_share=0, pair_weight=1.0, softmax_weight=0.0, speaker_target=0.0,
        own_target=0.0, min_s=0.4, max_s=0.4,
    )  # fmt: skip
    batches = PairBatches([Source(*corpora[0], 1.0)], TINY_SPEC, recipe, 8, 4, 0)
    pool = Pool(tmp_path / "pool", encoder, batches, 4)
    pool.fill()
    schedule = Schedule(steps=40, rate=3e-3, warmup_steps=1, floor=0.0)
    tuned = train_arm(encoder, TINY_SPEC, batches.centres, pool, recipe, schedule, 1, tmp_path / "run")

    def loss(model):
        with torch.no_grad():
            embeddings = [model.pool(model.stages[-1](pool[k]["activations"].float())) for k in range(4)]
        return float(np.mean([pair_loss(*each.chunk(2)) for each in embeddings]))

    assert loss(tuned) < 0.7 * loss(encoder)


def test_a_custom_arm_needs_no_registration(corpora, tmp_path):
    mine = Arm("mine", dataclasses.replace(few("aam")[0].recipe, pair_weight=2.0), "my own")
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, [mine], (1,), BUDGET)
    assert "mine: my own" in format_table(rows, [mine])


def test_all_layers_learn_where_that_is_asked_for(corpora, tmp_path, monkeypatch):
    moved = set()
    real = ablation.train_whole

    def watched(encoder, *arguments, **options):
        tuned = real(encoder, *arguments, **options)
        changed = {n for n, value in encoder.state_dict().items() if not torch.equal(value, tuned.state_dict()[n])}
        moved.update(name.split(".")[0] for name in changed)
        return tuned

    monkeypatch.setattr(ablation, "train_whole", watched)
    budget = dataclasses.replace(BUDGET, whole=True)
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, few("aam", "+masking"), (1,), budget, num_workers=0)
    assert [row["arm"] for row in rows] == ["start", "aam", "+masking"] and moved == {"stem", "stages", "linear"}
    assert not (tmp_path / "pools").exists() and not [*(tmp_path / "runs").iterdir()]
    assert rows[0] != rows[1]


def test_arms_of_a_seed_hear_the_same_speakers_and_clips_where_all_layers_learn(corpora):
    sources = [Source(prepared, embeddings, 1.0) for prepared, embeddings in corpora]
    heard = []
    for arm in few("aam", "+masking"):
        batches = PairBatches(sources, TINY_SPEC, arm.recipe, 3, 6, 1, aligned=True)
        of_arm = []
        for step in range(6):
            batch = batches[step]
            of_arm.append(batch["labels"].tolist())
        heard.append(of_arm)
    assert heard[0] == heard[1]


def test_no_more_clips_are_judged_by_than_the_trials_allow(corpora, monkeypatch):
    monkeypatch.setattr(ablation, "MAX_CLIPS", 12)
    prepared, _ = corpora[0]
    speakers = frozenset(clip.speaker for clip in prepared.clips)
    chosen = ablation.Development.of(tiny_encoder(), TINY_SPEC, [prepared], speakers, 0)
    assert len(chosen.corpora["toy"]) == 12 and chosen.activations["toy"].shape == (12, 200, 80)
    assert len({clip.speaker for clip in chosen.corpora["toy"]}) == 4


def test_folds_judge_every_speaker_once_and_share_no_one(corpora):
    sets = [prepared for prepared, _ in corpora]
    groups = folds(sets, 4)
    assert sorted(name for group in groups for name in group) == sorted(
        {clip.speaker for prepared in sets for clip in prepared.clips}
    )
    assert all(sum(name.startswith(corpus) for name in group) == 2 for group in groups for corpus in ("toy", "other"))
    with pytest.raises(ValueError, match="8 speakers, expected 10 or more for 5 folds"):
        folds(sets, 5)


def test_an_arm_is_judged_by_the_speakers_of_its_fold_alone(corpora, tmp_path):
    held = folds([prepared for prepared, _ in corpora], 4)[0]
    rows = ablate(tiny_encoder(), TINY_SPEC, corpora, tmp_path, few("aam"), (1,), BUDGET, developing=held)
    (first, second) = read_judged([row["judged"] for row in rows])
    assert {clip.speaker for rows in first.clips.values() for clip in rows} == held
    assert (first.arm, second.arm, second.seed) == ("start", "aam", 1) and first.fold == second.fold
