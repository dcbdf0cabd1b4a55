"""The training loop: it learns, it resumes to the same losses, and it leaves whole files behind."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re

import pytest
import torch

from tests.training import TINY_SPEC, prepared, random_embeddings, tiny_encoder
from train.finetune import fit
from train.loop import Batches, State
from train.loop import run as run_loop
from train.model import load_checkpoint
from train.pairs import PairBatches, Recipe, Source
from train.progress import Progress
from train.schedule import Schedule

RECIPE = Recipe(min_s=0.4, max_s=0.5, morph=0.0, pair_weight=0.5, softmax_weight=0.1)
SCHEDULE = Schedule(steps=8, rate=1e-3, frozen_stages=1, warmup_steps=2, checkpoint_every_s=0.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    clips = prepared(tmp_path_factory.mktemp("loop") / "toy", speakers=4, seconds=0.6)
    return Source(clips, random_embeddings(clips), 1.0)


def losses_of(out):
    """Step -> its losses, from the log; a step that was done twice must have had the same losses."""
    found = {}
    if (out / "log.csv").is_file():
        for row in csv.DictReader((out / "log.csv").read_text().splitlines()):
            step = found.setdefault(int(row["step"]), {})
            assert step.setdefault(row["figure"], row["value"]) == row["value"]
    return found


def run(source, out, schedule=SCHEDULE, recipe=RECIPE, seed=1, stop_at=None, **options):
    """Train; a judge of every step makes the log hold every step's losses."""
    schedule = dataclasses.replace(schedule, judge_every=schedule.judge_every or 1)
    batches = PairBatches([source], TINY_SPEC, recipe, 3, schedule.steps, seed)

    def progress(step, _):
        if step == stop_at:
            raise KeyboardInterrupt

    options = {"num_workers": 0, "progress": progress, "judge": lambda model: {}} | options
    try:
        averaged = fit(tiny_encoder(), TINY_SPEC, batches, schedule, out, **options)
    except KeyboardInterrupt:
        averaged = None
    return losses_of(out), averaged


def same(a, b):
    return all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())


def test_same_seed_same_losses_and_weights(source, tmp_path):
    first, a = run(source, tmp_path / "a")
    second, b = run(source, tmp_path / "b")
    assert first == second and len(first) == 8 and same(a, b)
    third, _ = run(source, tmp_path / "c", seed=2)
    assert third != first


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_goes_on_to_the_losses_of_one_that_never_stopped(source, tmp_path, stop_at):
    whole, expected = run(source, tmp_path / "whole")
    before, _ = run(source, tmp_path / "cut", stop_at=stop_at)
    after, averaged = run(source, tmp_path / "cut")
    assert before == {step: whole[step] for step in range(1, stop_at)}
    assert after == whole and len(whole) == 8
    assert same(averaged, expected)


def test_losses_do_not_depend_on_the_number_of_workers(source, tmp_path):
    alone, a = run(source, tmp_path / "a", num_workers=0)
    shared, b = run(source, tmp_path / "b", num_workers=2)
    assert alone == shared and same(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_their_steps_from_whichever_a_run_begins_with(source, workers):
    batches = PairBatches([source], TINY_SPEC, RECIPE, 3, 6, 1)
    ahead = Batches(batches, 6, workers)
    for step in (3, 4, 5, 0, 1):
        assert torch.equal(ahead(step)["features"], batches[step]["features"])


def test_gathered_gradients_make_one_step_of_a_larger_batch(source, tmp_path):
    two = dataclasses.replace(SCHEDULE, steps=4, accumulate=2)
    batches = PairBatches([source], TINY_SPEC, RECIPE, 3, two.batches, 1)
    seen = []

    def losses(batch, step):
        seen.append(step)
        weight = module.weight.sum() * batch["features"].mean()
        return {"loss": (weight - float(len(seen))).square()}

    module = tiny_encoder().linear.requires_grad_(False)
    module.weight.requires_grad_(True)
    encoder = tiny_encoder()
    state = State(module, torch.optim.SGD([module.weight], 0.0), encoder, TINY_SPEC)
    run_loop(tmp_path, two, state, Batches(batches, two.batches, 0), losses)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    logged = [row for row in csv.DictReader((tmp_path / "log.csv").read_text().splitlines()) if row["step"] == "4"]
    assert len(logged) == 1  # the mean of the last two


def test_progress_shows_how_fast_crops_are_learned_from_and_the_share_of_waiting(source, tmp_path):
    stream = io.StringIO()
    run(source, tmp_path, progress=Progress("fit toy", stream))
    assert re.search(r"fit toy: 8 in .*; [\d.e+]+ crops/s, \d+% of the time waiting for data", stream.getvalue())


def test_what_another_version_left_is_refused_with_its_path(source, tmp_path):
    torch.save({"trained": {}, "step": 3}, tmp_path / "last.pt")
    with pytest.raises(
        ValueError, match=r"last\.pt: no run to go on with, \['average', 'module', 'optimizer'\] missing"
    ):
        run(source, tmp_path)


def test_a_finished_run_does_nothing_more(source, tmp_path):
    _, first = run(source, tmp_path)
    log = (tmp_path / "log.csv").read_text()
    _, second = run(source, tmp_path)
    assert (tmp_path / "log.csv").read_text() == log and same(first, second)


def test_frozen_stages_stay_and_the_others_learn(source, tmp_path):
    start = tiny_encoder().state_dict()
    run(source, tmp_path / "frozen", dataclasses.replace(SCHEDULE, frozen_stages=2))
    trained = torch.load(tmp_path / "frozen" / "last.pt", weights_only=True)["module"]
    moved = {name for name, value in start.items() if not torch.equal(trained[f"encoder.{name}"], value)}
    assert moved and all(name.startswith(("stages.2", "linear")) for name in moved)
    run(source, tmp_path / "free", dataclasses.replace(SCHEDULE, frozen_stages=0))
    trained = torch.load(tmp_path / "free" / "last.pt", weights_only=True)["module"]
    moved = {name.split(".")[0] for name, value in start.items() if not torch.equal(trained[f"encoder.{name}"], value)}
    assert moved == {"stem", "stages", "linear"}


def test_training_lowers_what_it_is_asked_to_lower(source, tmp_path):
    recipe = dataclasses.replace(RECIPE, channel=0.0, mask=0.0, own_share=0.0, softmax_weight=0.0, copy_paste=0.0)
    schedule = Schedule(steps=60, rate=5e-3, frozen_stages=0, warmup_steps=5)
    losses, _ = run(source, tmp_path, schedule, recipe)
    early = sum(float(losses[step]["loss"]) for step in range(1, 11)) / 10
    late = sum(float(losses[step]["loss"]) for step in range(51, 61)) / 10
    assert late < 0.75 * early


def test_the_schedule_warms_up_and_comes_down_to_almost_nothing():
    schedule = Schedule(steps=100, warmup_steps=10)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and max(factors) == 1.0
    assert all(b >= a for a, b in itertools.pairwise(factors[:10]))
    assert all(b <= a for a, b in itertools.pairwise(factors[10:]))
    assert 0.0 < factors[-1] < 0.03


def test_the_schedule_may_come_down_to_nothing():
    assert Schedule(steps=100, warmup_steps=10, floor=0.0).factor(100) == 0.0


def test_best_is_the_average_and_holds_where_it_came_from(source, tmp_path):
    _, averaged = run(source, tmp_path, provenance={"corpora": ["toy"]})
    model, spec, extra = load_checkpoint(tmp_path / "best.pt")
    assert same(model, averaged) and spec == TINY_SPEC
    assert extra["provenance"] == {"corpora": ["toy"]} and extra["step"] == 8 and extra["finished"] is True
    assert extra["recipe"]["pair_weight"] == RECIPE.pair_weight
    last = torch.load(tmp_path / "last.pt", weights_only=True)["module"]
    assert not torch.equal(last["encoder.linear.weight"], model.linear.weight)


def test_the_log_has_losses_and_the_judges_figures(source, tmp_path):
    asked = []

    def judge(model):
        asked.append(model)
        return {"toy.pairs": 12.5}

    run(source, tmp_path, dataclasses.replace(SCHEDULE, judge_every=3), judge=judge)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert len(asked) == 3  # steps 3, 6 and the last
    assert [row["step"] for row in rows if row["figure"] == "toy.pairs"] == ["3", "6", "8"]
    assert {row["figure"] for row in rows} >= {"loss", "pair", "softmax", "target", "toy.pairs"}


def test_judging_does_not_change_the_training(source, tmp_path):
    _, plain = run(source, tmp_path / "a", judge=None)
    _, judged = run(source, tmp_path / "b", judge=lambda model: {"x": 0.0})
    assert same(plain, judged)


def test_no_half_written_file_is_left(source, tmp_path):
    run(source, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "log.csv"]


def test_a_batch_whose_gradient_is_not_finite_is_passed_over(source, tmp_path):
    class Broken(PairBatches):
        def __getitem__(self, step):
            batch = super().__getitem__(step)
            if step == 1:
                batch["features"] = batch["features"] * float("nan")
            return batch

    batches = Broken([source], TINY_SPEC, RECIPE, 3, 4, 1)
    averaged = fit(tiny_encoder(), TINY_SPEC, batches, dataclasses.replace(SCHEDULE, steps=4), tmp_path, num_workers=0)
    assert all(torch.isfinite(value).all() for value in averaged.state_dict().values())
