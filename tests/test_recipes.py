"""How the shipped models are made, on tiny sets: targets, morphs, what may train what, runs and their mean."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch

from tests.training import TINY_SHAPE, TINY_SPEC, prepared, tiny_encoder
from train import recipes
from train.__main__ import main
from train.compress import cut
from train.corpora import CORPORA
from train.model import ResidualEncoder, load_checkpoint, save_checkpoint
from train.pairs import Recipe
from train.prepare import PreparedSet
from train.prosody_morphs import MorphedSet, morph
from train.recipes import Judge, Run, fit_base, fit_pairs, fit_run, fit_small, interpolate, open_sources
from train.refit import refit_linear
from train.schedule import Schedule
from train.teachers import embed_initial, middle, open_teacher

QUICK = Schedule(steps=2, frozen_stages=1, warmup_steps=1)
SHORT = Recipe(min_s=0.4, max_s=0.5, morph=0.3)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A prepared root with two open corpora and a research one, embedded by a tiny encoder."""
    folder = tmp_path_factory.mktemp("embedded")
    for corpus in ("malayalam", "librispeech", "ased"):
        emotions, takes = (("neutral", "angry"), 2) if corpus == "ased" else (("neutral",), 4)
        prepared(folder / corpus, corpus, 6, emotions, takes, seconds=0.6, genders=("female",))
        embed_initial(tiny_encoder(), TINY_SPEC, folder / corpus)
    return folder


@pytest.fixture
def root(embedded, tmp_path):
    """A copy of `embedded`, to change at will."""
    return shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)


def test_targets_are_one_unit_row_a_clip(root):
    targets = np.load(root / "ased" / "public.npy")
    assert targets.shape == (24, 16) and np.allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)
    assert not list((root / "ased").glob("*.part*"))


def test_open_models_learn_from_open_corpora_only(root):
    sources, _ = open_sources(root, {"malayalam": 1.0, "librispeech": 2.0})
    assert [source.share for source in sources] == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"ased is for research only \(none stated\); not for base"):
        open_sources(root, {"ased": 1.0})
    assert len(open_sources(root, {"ased": 1.0}, use="research")[0]) == 1


def test_every_corpus_of_the_shipped_recipes_is_open():
    runs = recipes.BASE_RUNS.values()
    used = {corpus for run in runs for corpus in run.shares} | recipes.SMALL_SHARES.keys()
    used |= recipes.PAIRS_RUN.shares.keys()
    assert {CORPORA[corpus.split("+")[0]].use for corpus in used} == {"open"}


def test_a_set_without_targets_or_with_those_of_another_is_refused(root):
    np.save(root / "malayalam" / "public.npy", np.ones((3, 16), np.float32))
    with pytest.raises(ValueError, match="has 3 rows, expected 24; teach again"):
        open_sources(root, {"malayalam": 1.0})
    (root / "malayalam" / "public.npy").unlink()
    with pytest.raises(ValueError, match=r"no public\.npy; make it with"):
        open_sources(root, {"malayalam": 1.0})


def test_held_out_speakers_are_the_same_in_training_and_in_judging(root):
    (source,), _ = open_sources(root, {"malayalam": 1.0})
    judge = Judge(root, TINY_SPEC, {"malayalam": 100})
    clips, indices, protocols = judge.sets["malayalam"]
    assert {clips.clips[i].speaker for i in indices} == source.held_out == {"malayalam-0", "malayalam-5"}
    assert protocols == ("same",)


def test_the_judge_gives_percent_for_each_corpus_and_their_mean(root):
    figures = Judge(root, TINY_SPEC, {"ased": 100, "malayalam": 100})(tiny_encoder())
    assert set(figures) == {"ased.pairs", "ased.neutral", "malayalam.same", "mean.pairs"}
    assert all(0.0 <= value <= 100.0 for value in figures.values()) and max(figures.values()) > 1.0
    assert figures["mean.pairs"] == figures["ased.pairs"]


def test_the_checkpoint_of_a_run_holds_what_it_learnt_from(root, tmp_path):
    run = Run(SHORT, QUICK, {"malayalam": 1.0, "librispeech": 1.0})
    fit_run(tiny_encoder(), TINY_SPEC, root, tmp_path / "run", run, [], [], pairs=2, num_workers=0)
    provenance = load_checkpoint(tmp_path / "run" / "best.pt")[2]["provenance"]
    assert provenance["corpora"] == [
        {"name": "malayalam", "licence": "CC BY-SA 4.0"}, {"name": "librispeech", "licence": "CC BY 4.0"},
    ]  # fmt: skip


def test_interpolated_weights_lie_between_the_start_and_the_mean_of_the_runs():
    start, runs = tiny_encoder(0), [tiny_encoder(1), tiny_encoder(2)]
    weights = [model.state_dict()["linear.weight"] for model in (start, *runs)]
    assert torch.allclose(interpolate(start, runs, 0.0).state_dict()["linear.weight"], weights[0])
    assert torch.allclose(interpolate(start, runs, 1.0).state_dict()["linear.weight"], (weights[1] + weights[2]) / 2)
    expected = 0.7 * weights[0] + 0.15 * weights[1] + 0.15 * weights[2]
    assert torch.allclose(interpolate(start, runs, 0.3).state_dict()["linear.weight"], expected, atol=1e-6)


def test_base_is_the_mixture_of_its_runs_each_from_the_same_start(root, tmp_path, monkeypatch):
    run = Run(SHORT, QUICK, {"malayalam": 1.0})
    monkeypatch.setattr(recipes, "BASE_RUNS", {"a": run, "b": dataclasses.replace(run, shares={"librispeech": 1.0})})
    monkeypatch.setattr(recipes, "REFIT_SETS", ("malayalam",))
    (root / "malayalam" / "fused.npy").write_bytes((root / "malayalam" / "public.npy").read_bytes())
    start = tiny_encoder()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    base = fit_base(start, TINY_SPEC, root, tmp_path / "base", [], [], pairs=2, num_workers=0)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    runs = [load_checkpoint(tmp_path / "base" / name / "best.pt")[0] for name in ("a", "b")]
    saved, spec, extra = load_checkpoint(tmp_path / "base" / "best.pt")
    refitted_on, _ = open_sources(root, {"malayalam": 1.0}, targets="fused")
    refitted = refit_linear(start, TINY_SPEC, refitted_on, recipes.REFIT_PENALTY)
    begun = interpolate(start, [refitted], recipes.REFIT_ALPHA)
    expected = interpolate(begun, runs, recipes.BASE_ALPHA).state_dict()
    for name, value in expected.items():
        assert torch.allclose(value, saved.state_dict()[name]) and torch.allclose(value, base.state_dict()[name])
    assert spec == TINY_SPEC and [c["name"] for c in extra["provenance"]["corpora"]] == ["malayalam", "librispeech"]


SMALL = TINY_SHAPE


@pytest.fixture
def small_run(root, tmp_path, monkeypatch):
    """Compress a tiny encoder for some steps into a folder of its own."""
    monkeypatch.setattr(recipes, "SMALL_SHARES", {"malayalam": 1.0, "librispeech": 1.0})
    torch.manual_seed(0)
    large = ResidualEncoder(dataclasses.replace(TINY_SHAPE, blocks=(2, 2, 2), stem_stride=(1, 1)))

    def run(name, stop_at=None, steps=10, **options):
        """Train; a judge of every step makes the log hold every step's losses, in their order."""
        schedule = Schedule(steps, rate=3e-3, warmup_steps=3, checkpoint_every_s=0.0, judge_every=1)

        def progress(done, total):
            if done == stop_at:
                raise KeyboardInterrupt

        options = {"num_workers": 0, "judge": lambda model: {}, "progress": progress} | options
        with contextlib.suppress(KeyboardInterrupt):
            run.small = fit_small(large, TINY_SPEC, root, tmp_path / name, SMALL, schedule, 8, **options)
        rows = csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines())
        losses = {"hints": [], "match": [], "loss": []}
        for row in rows:
            losses[row["figure"]].append(float(row["value"]))
        return losses

    run.large = large
    return run


def test_small_is_cut_and_distilled_from_the_large_one(small_run, tmp_path):
    assert len(small_run("run", steps=30)["loss"]) == 30
    small, large = small_run.small, small_run.large
    assert small.shape == SMALL
    unseen = torch.randn(16, 64, 80, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before, after = (torch.cosine_similarity(e(unseen), large(unseen)).mean() for e in (cut(large, SMALL), small))
    assert 1 - after < 0.7 * (1 - before)
    loaded, _, extra = load_checkpoint(tmp_path / "run" / "best.pt")
    assert extra["finished"] is True
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_stages_are_hinted_at_for_their_share_of_the_steps_and_not_after(small_run):
    hints = small_run("run", hints_until=0.4)["hints"]
    assert all(value > 0 for value in hints[:4]) and hints[4:] == [0.0] * 6
    assert small_run("unhinted", hints_until=0.0)["hints"] == [0.0] * 10


def test_a_compression_that_was_stopped_goes_on_with_the_same_losses(small_run, tmp_path):
    whole = small_run("whole")["match"]
    before = small_run("stopped", stop_at=5)["match"]
    assert load_checkpoint(tmp_path / "stopped" / "best.pt")[2]["finished"] is False
    assert before == whole[:4] and small_run("stopped")["match"] == whole


def test_held_out_speakers_are_not_compressed_on(root, monkeypatch):
    monkeypatch.setattr(recipes, "SMALL_SHARES", {"malayalam": 1.0})
    morph(root / "malayalam", 1, num_workers=1)
    heard, morphs = [], []

    def crops(sets, *rest, device):
        heard.extend(sets)
        morphs.extend(rest[-1])

    monkeypatch.setattr(recipes, "fit_stages", lambda *args, **options: args)
    monkeypatch.setattr(recipes, "Crops", crops)
    fit_small(tiny_encoder(), TINY_SPEC, root, root / "run", SMALL)
    assert {clip.speaker for clip in heard[0].clips} == {f"malayalam-{n}" for n in (1, 2, 3, 4)}
    assert len(morphs) == 4 and len(MorphedSet(root / "malayalam" / "morphs").of) == 6


# The commands


def test_commands_teach_and_morph_prepared_sets(root, tmp_path, capsys, tiny_encoder_path):
    save_checkpoint(tmp_path / "start.pt", tiny_encoder(), TINY_SPEC)
    before = np.load(root / "ased" / "public.npy")
    (root / "ased" / "public.npy").unlink()
    assert main(["teach", str(tmp_path / "start.pt"), str(root / "ased")]) == 0
    assert np.allclose(np.load(root / "ased" / "public.npy"), before)
    command = ["teach", str(tmp_path / "start.pt"), str(root / "ased"), "--beside", str(tiny_encoder_path)]
    assert main(command) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "ased, start", "ased, tiny", "ased, together",
    ]  # fmt: skip
    assert main(["morph", str(root / "ased"), "--per-speaker", "1", "--workers", "1"]) == 0
    assert "6 morphs" in capsys.readouterr().out


def test_ablate_runs_from_the_command_line(root, tmp_path, capsys):
    save_checkpoint(tmp_path / "start.pt", tiny_encoder(), TINY_SPEC)
    command = [
        "ablate", "--start", str(tmp_path / "start.pt"), "--prepared", str(root), "--corpora", "ased",
        "-o", str(tmp_path / "out"), "--arms", "aam", "+cosine", "--seeds", "1", "--steps", "2", "--pairs", "2",
    ]  # fmt: skip
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| +cosine | 1 |" in table and (tmp_path / "out" / "table.md").read_text() == table
    assert main([*command, "--arms", "cosine"]) == 1
    assert "no arm cosine; there are aam, +copypaste" in capsys.readouterr().err


def test_ablate_over_folds_compares_the_arms_over_all_speakers(root, tmp_path, capsys):
    save_checkpoint(tmp_path / "start.pt", tiny_encoder(), TINY_SPEC)
    command = [
        "ablate", "--start", str(tmp_path / "start.pt"), "--prepared", str(root), "--corpora", "ased", "--whole",
        "-o", str(tmp_path / "out"), "--arms", "aam", "+cosine", "--seeds", "1", "--steps", "1", "--pairs", "2",
    ]  # fmt: skip
    assert main([*command, "--folds", "2", "--workers", "0"]) == 0
    table = capsys.readouterr().out
    assert "| +cosine | 1 |" in table and "95 % interval" in table and "| start |" not in table
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fold-1", "fold-2", "table.md"]
    assert main([*command, "--folds", "1"]) == 1
    assert "expected --folds of 2 or more, got 1" in capsys.readouterr().err


def test_fit_small_from_the_command_line_records_what_it_was_made_of(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "SMALL_SHARES", {"malayalam": 1.0})
    monkeypatch.setattr(recipes, "SMALL_STAGES", Schedule(2, rate=3e-3))
    monkeypatch.setattr(recipes, "SMALL_SHAPE", SMALL)
    large = ResidualEncoder(dataclasses.replace(TINY_SHAPE, blocks=(2, 2, 2), stem_stride=(1, 1)))
    corpora = [{"name": "librispeech", "licence": "CC BY 4.0"}]
    made_of = {"corpora": corpora, "teachers": [{"name": "A", "licence": "B"}]}
    save_checkpoint(tmp_path / "base.pt", large, TINY_SPEC, provenance=made_of)
    command = ["fit", "small", "--start", str(tmp_path / "base.pt"), "--prepared", str(root), "--rooms", "0"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    small, spec, extra = load_checkpoint(tmp_path / "out" / "best.pt")
    assert small.shape == SMALL and spec.name == "small" and extra["finished"] is True
    assert [corpus["name"] for corpus in extra["provenance"]["corpora"]] == ["librispeech", "malayalam"]
    assert [teacher["name"] for teacher in extra["provenance"]["teachers"]] == ["A", "base of emoinv-edge"]

    begun = {}
    monkeypatch.setattr(recipes, "fit_stages", lambda small, *rest, **options: begun.update(options, small=small))
    further = ["--go-on-from", str(tmp_path / "out" / "best.pt"), "--steps", "3", "--batch", "5"]
    assert main([*command, *further, "-o", str(tmp_path / "further")]) == 0
    assert begun["hints_until"] == 0.0
    assert [teacher["name"] for teacher in begun["provenance"]["teachers"]] == ["A", "base of emoinv-edge"]
    assert [corpus["name"] for corpus in begun["provenance"]["corpora"]] == ["librispeech", "malayalam"]
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in begun["small"].state_dict().items())


def test_fit_research_may_learn_from_research_corpora_and_records_them(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "RESEARCH_RUN", Run(SHORT, QUICK, {"ased": 0.5, "malayalam": 0.5}))
    save_checkpoint(tmp_path / "base.pt", tiny_encoder(), TINY_SPEC)
    command = ["fit", "research", "--start", str(tmp_path / "base.pt"), "--prepared", str(root), "--rooms", "0"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    _, _, saved = load_checkpoint(tmp_path / "run" / "best.pt")
    assert {corpus["name"] for corpus in saved["provenance"]["corpora"]} == {"ased", "malayalam"}
    assert "none stated" in {corpus["licence"] for corpus in saved["provenance"]["corpora"]}
    assert {CORPORA[name].use for name in recipes.RESEARCH_RUN.shares} == {"research", "open"}


def test_fit_research_learns_from_a_corpus_of_ones_own(root, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RESEARCH_RUN", Run(SHORT, QUICK, {"ased": 1.0}))
    prepared(root / "mine", "mine", speakers=6, takes=2, seconds=0.6, genders=("female",))
    embed_initial(tiny_encoder(), TINY_SPEC, root / "mine")
    save_checkpoint(tmp_path / "base.pt", tiny_encoder(), TINY_SPEC)
    command = ["fit", "research", "--start", str(tmp_path / "base.pt"), "--prepared", str(root), "--rooms", "0"]
    assert main([*command, "--corpora", "mine=0.7", "malayalam", "-o", str(tmp_path / "run")]) == 0
    _, _, saved = load_checkpoint(tmp_path / "run" / "best.pt")
    licences = {corpus["name"]: corpus["licence"] for corpus in saved["provenance"]["corpora"]}
    assert set(licences) == {"mine", "malayalam"} and licences["mine"] == "your own"


@pytest.mark.parametrize("share", ["mine=0", "mine=-1", "mine=much", "=1", "mine=inf"])
def test_what_is_no_share_of_a_corpus_is_wrong_usage(share, tmp_path):
    command = ["fit", "research", "--start", "base.pt", "--prepared", str(tmp_path), "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*command, "--corpora", share])


@pytest.mark.parametrize("use", ["open", "research"])
def test_a_corpus_of_ones_own_that_is_not_prepared_is_named(root, use):
    with pytest.raises((ValueError, OSError), match="typo"):
        open_sources(root, {"typo": 1.0}, use)


def test_fit_pairs_interpolates_towards_a_run_with_the_teachers_targets(root, tmp_path, monkeypatch, capsys):
    run = Run(SHORT, QUICK, {"malayalam": 0.5, "librispeech": 0.5}, targets="base")
    monkeypatch.setattr(recipes, "PAIRS_RUN", run)
    monkeypatch.setattr(recipes, "PAIRS_BATCH", 2)
    start, teacher = tiny_encoder(0), tiny_encoder(1)
    made_of = {"corpora": [{"name": "emogator", "licence": "Apache-2.0"}], "teachers": []}
    save_checkpoint(tmp_path / "small.pt", start, TINY_SPEC, provenance=made_of)
    save_checkpoint(tmp_path / "large.pt", teacher, TINY_SPEC)
    command = ["fit", "pairs", "--start", str(tmp_path / "small.pt"), "--prepared", str(root), "--rooms", "0"]
    with pytest.raises(SystemExit):
        main([*command, "-o", str(tmp_path / "no")])
    assert "required: --teacher" in capsys.readouterr().err
    command += ["--teacher", str(tmp_path / "large.pt"), "-o", str(tmp_path / "run")]
    assert main(command) == 0

    taught = np.load(root / "malayalam" / "base.npy")
    clips = PreparedSet(root / "malayalam")
    expected = open_teacher(tmp_path / "large.pt").embed([middle(clips.waveform(0), 64000)])
    assert np.allclose(taught[0], expected[0], atol=1e-4)
    ran = load_checkpoint(tmp_path / "run" / "pairs" / "best.pt")[0]
    saved, _, extra = load_checkpoint(tmp_path / "run" / "best.pt")
    half = interpolate(start, [ran], recipes.PAIRS_ALPHA)
    sources, _ = open_sources(root, run.shares, targets="base")
    refitted = refit_linear(half, TINY_SPEC, sources, recipes.PAIRS_REFIT_PENALTY)
    wanted = interpolate(half, [refitted], recipes.PAIRS_ALPHA).state_dict()
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in saved.state_dict().items())
    assert [corpus["name"] for corpus in extra["provenance"]["corpora"]] == ["emogator", "malayalam", "librispeech"]
    assert [each["name"] for each in extra["provenance"]["teachers"]] == ["base of emoinv-edge"]


def test_a_teacher_of_another_size_is_refused(root, tmp_path):
    save_checkpoint(tmp_path / "large.pt", tiny_encoder(), TINY_SPEC)
    other = dataclasses.replace(open_teacher(tmp_path / "large.pt"), embedding_dim=7)
    with pytest.raises(ValueError, match=f"expected embeddings of {TINY_SPEC.embedding_dim} numbers, got 7"):
        fit_pairs(tiny_encoder(), TINY_SPEC, root, tmp_path / "run", other, [], [])


@pytest.mark.parametrize("model", ["base", "pairs", "research"])
def test_the_options_of_small_are_refused_elsewhere(root, tmp_path, capsys, model):
    command = ["fit", model, "--start", "start.pt", "--prepared", str(root), "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*command, *(["--teacher", "base.pt"] if model == "pairs" else []), "--steps", "3"])
    assert "unrecognized arguments: --steps 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--steps", "--rate", "--batch"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_fit_small_refuses_lengths_and_rates_that_teach_nothing(root, tmp_path, capsys, option, value):
    save_checkpoint(tmp_path / "start.pt", tiny_encoder(), TINY_SPEC)
    command = ["fit", "small", "--start", str(tmp_path / "start.pt"), "--prepared", str(root)]
    assert main([*command, option, value, "-o", str(tmp_path / "run")]) == 1
    assert f"expected {option} above 0, got {value}" in capsys.readouterr().err


def test_the_research_recipe_leaves_out_what_is_for_development_only():
    assert {CORPORA[corpus].use for corpus in recipes.RESEARCH_RUN.shares} == {"research", "open"}
