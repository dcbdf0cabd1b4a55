"""The protocols against brute force, the cache, and the command."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
import soundfile
from conftest import TINY_SPEC, build_encoder, synthesise

from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import Calibration, FarTable, Term
from train.__main__ import main
from train.evaluate import (
    PROTOCOLS,
    EmbeddingCache,
    EvaluationSet,
    Speech,
    evaluate_embeddings,
    evaluate_llr,
    evaluate_model,
    format_table,
    make_trials,
    open_set,
    reliability,
    thin,
    unit,
)
from train.metrics import eer, far_frr_at, frr_at_far, min_dcf
from train.progress import Progress, time_left

EMOTIONS = ("neutral", "angry", "sad")


@dataclasses.dataclass(frozen=True)
class Clip:
    speaker: str
    gender: str = ""
    emotion: str = "neutral"
    seconds: float = 2.0


def population(seed=0, speakers=6, clips=5, dim=8):
    """Clips of both genders and three emotions, and embeddings that lean on speaker and emotion."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    moods = {emotion: rng.normal(0, 0.7, dim) for emotion in EMOTIONS}
    for s in range(speakers):
        centre = rng.normal(0, 1, dim)
        for emotion in EMOTIONS:
            for _ in range(clips):
                rows.append(Clip(f"s{s}", ("male", "female")[s % 2], emotion, float(rng.uniform(0.5, 8))))
                vectors.append(centre + moods[emotion] + rng.normal(0, 0.8, dim))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], np.array(vectors)[order].astype(np.float32)


def brute_force(clips, embeddings, protocol):
    """(scores, target) straight from the protocols' words."""
    vectors = [v / np.linalg.norm(v) for v in embeddings.astype(np.float64)]
    trials = []
    if protocol == "enrol":
        for speaker in dict.fromkeys(clip.speaker for clip in clips):
            mine = [i for i, c in enumerate(clips) if c.speaker == speaker and c.emotion == "neutral"][:4]
            profile = np.mean([vectors[i] for i in mine], axis=0)
            for j, clip in enumerate(clips):
                if clip.emotion != "neutral" and clip.gender == clips[mine[0]].gender:
                    trials.append((profile @ vectors[j] / np.linalg.norm(profile), clip.speaker == speaker))
    else:
        for i, j in itertools.combinations(range(len(clips)), 2):
            a, b = clips[i], clips[j]
            wanted = {
                "pairs": a.emotion != b.emotion,
                "same": a.emotion == b.emotion,
                "neutral": a.emotion == b.emotion == "neutral",
            }[protocol]
            if wanted and a.gender == b.gender:
                trials.append((vectors[i] @ vectors[j], a.speaker == b.speaker))
    values, target = zip(*trials, strict=True)
    return np.array(values), np.array(target)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_equals_its_description_trial_by_trial(protocol):
    clips, embeddings = population()
    scores, target = brute_force(clips, embeddings, protocol)
    result = evaluate_embeddings(embeddings, clips)[protocol]
    assert (result["targets"], result["nontargets"]) == (target.sum(), (~target).sum())
    assert result["eer"] == pytest.approx(eer(scores[target], scores[~target]), abs=1e-6)
    assert result["frr_at_far"]["0.01"] == pytest.approx(frr_at_far(scores[target], scores[~target], 0.01), abs=1e-6)
    assert result["min_dcf"]["0.05"] == pytest.approx(min_dcf(scores[target], scores[~target], 0.05), abs=1e-6)


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


def test_thinning_keeps_every_speaker_and_emotion_and_says_so():
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


# The cache


def vector(seed, dim=4):
    return np.random.default_rng(seed).normal(size=dim).astype(np.float32)


def test_cache_gives_back_what_was_put_after_reopening(tmp_path):
    wave = vector(0, 100)
    key = EmbeddingCache.key(wave)
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert cache.get(key) is None
        cache.put(key, vector(1))
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert np.array_equal(cache.get(key), vector(1))
        assert cache.get(EmbeddingCache.key(wave + np.float32(1e-6))) is None
    with EmbeddingCache(tmp_path, "e" * 64, 4) as cache:
        assert len(cache) == 0  # another model


def test_cache_drops_a_record_that_a_stopped_process_left_unfinished(tmp_path):
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        for seed in range(3):
            cache.put(EmbeddingCache.key(vector(seed)), vector(seed))
        path = cache.path
    for cut in (1, 16, 31):
        data = path.read_bytes()
        path.write_bytes(data[:-cut])
        with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
            assert len(cache) == 2
            cache.put(EmbeddingCache.key(vector(2)), vector(2))
        with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
            assert np.array_equal(cache.get(EmbeddingCache.key(vector(2))), vector(2))


def test_ranks_write_their_own_file_and_read_all(tmp_path):
    for rank in (0, 1):
        with EmbeddingCache(tmp_path, "f" * 64, 4, rank) as cache:
            cache.put(EmbeddingCache.key(vector(rank)), vector(rank))
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert len(cache) == 2


def test_cache_refuses_what_is_no_embedding(tmp_path):
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        for bad in (np.full(4, np.nan, np.float32), np.zeros(5, np.float32)):
            with pytest.raises(ValueError, match="expected a finite embedding of shape"):
                cache.put(b"k" * 16, bad)


# Sets and models


VOICES = {"low": 105.0, "middle": 140.0, "high": 190.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three voices, five neutral clips and three of each other mood (said at another pitch)."""
    root = tmp_path_factory.mktemp("speech") / "voices"
    root.mkdir()
    rows = []
    for number, (name, f0) in enumerate(VOICES.items()):
        for emotion, count, factor in (("neutral", 5, 1.0), ("angry", 3, 1.06), ("sad", 3, 0.96)):
            for take in range(count):
                path = f"{name}-{emotion}-{take}.wav"
                wave = synthesise(1.6, 100 * number + 10 * len(emotion) + take, f0 * factor)
                soundfile.write(root / path, wave, 16000)
                rows.append((path, name, "female", emotion, 1.6))
    with open(root / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "speaker", "gender", "emotion", "seconds"), *rows])
    return root


CALIBRATION = Calibration(
    "centroid",
    -8.0,
    (Term("cosine", 12.0, -1.0, 1.0), Term("f0_above", -1.0, 0.0, 1.0)),
    (FarTable(1, (0.5, 0.1, 0.01), (-2.0, 0.0, 2.0)),),
    60,
    "synthetic",
)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    values = {"emoinv.calibration": json.loads(CALIBRATION.to_json())}
    return build_encoder(tmp_path_factory.mktemp("model") / "tiny.onnx", metadata=values)


def test_evaluating_a_folder_equals_embedding_its_clips_by_hand(folder, tiny_encoder_path, tmp_path):
    results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path)
    encoder = Encoder(tiny_encoder_path)
    rows = list(csv.DictReader(io.StringIO((folder / "manifest.csv").read_text())))
    embeddings = [encoder.embed(*soundfile.read(folder / row["path"], dtype="float32")) for row in rows]
    clips = [Clip(row["speaker"], row["gender"], row["emotion"]) for row in rows]
    by_hand = evaluate_embeddings(np.array(embeddings), clips)
    for protocol in PROTOCOLS:
        assert results["sets"]["voices"][protocol]["eer"] == by_hand[protocol]["eer"]
        assert results["sets"]["voices"][protocol]["targets"] == by_hand[protocol]["targets"] > 0


def test_a_second_evaluation_embeds_nothing(folder, tiny_encoder_path, tmp_path, monkeypatch):
    first = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path)
    monkeypatch.setattr(Encoder, "embed_with_norm", lambda *_: pytest.fail("embedded again"))
    assert evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path) == first


def test_a_large_set_is_thinned_before_it_is_embedded(folder, tiny_encoder_path, tmp_path):
    results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path, max_clips=18)
    result = results["sets"]["voices"]
    assert (result["clips"], result["clips_used"]) == (33, 18) and result["pairs"]["targets"] > 0
    with EmbeddingCache(tmp_path, results["fingerprint"], TINY_SPEC.embedding_dim) as cache:
        assert len(cache) == 18


def test_ranks_share_the_clips_and_rank_0_reports(folder, tiny_encoder_path, tmp_path, monkeypatch):
    alone = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path / "alone")
    monkeypatch.setattr("train.distributed.barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        results = evaluate_model(tiny_encoder_path, [folder], resamples=0, cache_folder=tmp_path / "shared")
        counts.append(next((tmp_path / "shared").glob(f"*-rank{rank}.bin")).stat().st_size)
        assert (results is None) == (rank == "1")
    assert results == alone
    assert abs(counts[0] - counts[1]) <= 16 + 4 * TINY_SPEC.embedding_dim


def test_a_checkpoint_is_evaluated_like_a_model_file(folder, tmp_path):
    import torch

    from train.model import EncoderShape, ResidualEncoder, save_checkpoint

    torch.manual_seed(0)
    shape = EncoderShape((1, 1), (4, 8), ((1, 1), (2, 2)), (2, 2), 80, 32)
    save_checkpoint(tmp_path / "best.pt", ResidualEncoder(shape), TINY_SPEC)
    results = evaluate_model(tmp_path / "best.pt", [folder], resamples=0, cache_folder=tmp_path)
    assert 0.0 <= results["sets"]["voices"]["pairs"]["eer"] <= 1.0
    assert results["model"] == "best.pt"


@pytest.mark.parametrize(
    "text, message",
    [
        ("speaker,emotion\n", r"columns path, speaker and emotion; \['path'\] missing"),
        ("path,speaker,emotion\n", "a header and no clips"),
    ],
)
def test_a_broken_manifest_is_refused_with_what_is_wrong(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_set(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with manifest\.csv"):
        open_set(tmp_path / "nowhere")


def test_a_clip_that_cannot_be_read_is_named(tmp_path, tiny_encoder_path):
    (tmp_path / "manifest.csv").write_text("path,speaker,emotion\nbroken.wav,a,neutral\n")
    (tmp_path / "broken.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"clip broken\.wav: "):
        evaluate_model(tiny_encoder_path, [tmp_path], cache_folder=tmp_path)


def test_a_prepared_set_is_opened_too(tmp_path):
    from train.corpora import Clip as CorpusClip
    from train.prepare import prepare

    for take in range(2):
        soundfile.write(tmp_path / f"{take}.wav", synthesise(1.0, take), 16000)
    prepare([CorpusClip(tmp_path / f"{take}.wav", "c", f"c-{take}") for take in range(2)], tmp_path / "set", 1)
    opened = open_set(tmp_path / "set")
    assert [clip.speaker for clip in opened.clips] == ["c-0", "c-1"]
    assert opened.seconds[0] == pytest.approx(len(opened.waveform(0)) / 16000)


# Log-likelihood ratios


def quality(seconds=3.0, log_f0=5.0):
    return SpeechQuality(
        net_speech_s=seconds, snr_db=30.0, clipped_fraction=0.0, level_dbfs=-20.0, log_f0_mean=log_f0,
        log_f0_std=0.1, tilt_db=0.0, voiced_fraction=0.6,
    )  # fmt: skip


def acquired(clips, embeddings):
    return [Speech(quality(), vector) for vector in unit(embeddings)]


def test_llrs_are_those_of_the_calibration_on_profiles_of_four_neutral_clips():
    clips, embeddings = population()
    result = evaluate_llr(acquired(clips, embeddings), clips, CALIBRATION)
    scores, target = brute_force(clips, embeddings, "enrol")
    # All pitches are equal here, so the LLR is a line through the cosine.
    llrs = 12.0 * scores - 8.0
    assert result["enrol"]["targets"] == target.sum()
    assert result["enrol"]["eer"] == pytest.approx(eer(llrs[target], llrs[~target]), abs=1e-6)
    far, frr = far_frr_at(llrs[target], llrs[~target], 0.0)
    at = result["enrol"]["thresholds"]["0.1"]
    assert (at["llr"], at["far"], at["frr"]) == (0.0, pytest.approx(far, abs=1e-6), pytest.approx(frr, abs=1e-6))
    assert set(result["by_emotion"]) == set(EMOTIONS)


def test_rates_that_the_calibration_cannot_support_are_not_reported():
    clips, embeddings = population()
    result = evaluate_llr(acquired(clips, embeddings), clips, CALIBRATION)
    assert CALIBRATION.supported_far == 0.05
    assert set(result["enrol"]["thresholds"]) == {"0.5", "0.1"}


def test_unusable_clips_count_as_failures_and_give_no_score():
    clips, embeddings = population()
    speech = acquired(clips, embeddings)
    mute = [i for i, clip in enumerate(clips) if clip.speaker == "s0" and clip.emotion == "neutral"]
    for i in mute:
        speech[i] = Speech(quality(0.2), None)
    result = evaluate_llr(speech, clips, CALIBRATION)
    assert result["failure_to_acquire"] == pytest.approx(len(mute) / len(clips))
    assert result["failure_to_enrol"] == pytest.approx(1 / 6)


def test_neutral_clips_that_are_enrolled_are_tested_against_the_other_three():
    clips, embeddings = population(speakers=4, clips=4)  # no neutral clip is left over
    result = evaluate_llr(acquired(clips, embeddings), clips, CALIBRATION)
    neutral = result["by_emotion"]["neutral"]
    assert (neutral["targets"], neutral["nontargets"]) == (16, 16)
    vectors, own = unit(embeddings), []
    for i, clip in enumerate(clips):
        if clip.emotion == "neutral":
            rest = [j for j, c in enumerate(clips) if c.speaker == clip.speaker and c.emotion == "neutral" and j != i]
            own.append(12.0 * float(unit(vectors[rest].mean(axis=0)[None])[0] @ vectors[i]) - 8.0)
    _, frr = far_frr_at(own, [0.0], 0.0)
    assert neutral["thresholds"]["0.1"]["frr"] == pytest.approx(frr)


def test_nobody_to_enrol_gives_no_llr():
    clips = [Clip("a"), Clip("b")]
    assert evaluate_llr(acquired(clips, np.eye(2)), clips, CALIBRATION) is None


def test_reliability_of_true_llrs_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    # Normal scores of variance 2 m around +m and -m are their own log-likelihood ratios.
    targets, nontargets = rng.normal(2, 2, 20000), rng.normal(-2, 2, 20000)
    points = np.array(reliability(targets, nontargets))
    assert np.abs(points[:, 0] - points[:, 1]).max() < 0.25
    assert points[:, 2:].sum() > 0.9 * 40000


# The command


def test_command_prints_the_table_and_json(folder, calibrated, tmp_path, capsys):
    options = [str(calibrated), str(folder), "--cache", str(tmp_path), "--resamples", "20"]
    assert main(["evaluate", *options]) == 0
    out = capsys.readouterr().out
    assert "voices  pairs" in out and "Cllr" in out
    assert main(["evaluate", *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fingerprint"] == Encoder(calibrated).fingerprint
    assert values["sets"]["voices"]["llr"]["enrol"]["cllr"] >= values["sets"]["voices"]["llr"]["enrol"]["min_cllr"]


def test_command_says_in_one_line_what_is_broken(folder, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "none.onnx"), str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("python -m train evaluate: ") and "no such model" in err and len(err.splitlines()) == 1
    (tmp_path / "text.onnx").write_text("no model")
    assert main(["evaluate", str(tmp_path / "text.onnx"), str(folder)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sets_of_one_name_are_refused(folder, tiny_encoder_path, capsys):
    assert main(["evaluate", str(tiny_encoder_path), str(folder), str(folder)]) == 1
    assert "rename one or give it once" in capsys.readouterr().err


def test_help_of_every_command_has_an_example(capsys):
    for command in ("corpora", "prepare", "teach", "morph", "fit", "evaluate", "ablate"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"python -m train {command} " in capsys.readouterr().out


def test_progress_in_a_log_ends_with_the_total_and_is_not_chatty():
    stream = io.StringIO()
    progress = Progress("embed", stream)
    for done in range(1, 101):
        progress(done, 100)
    assert stream.getvalue().startswith("embed: 100 in ") and stream.getvalue().count("\n") == 1


def test_time_left_is_readable():
    assert [time_left(s) for s in (5.2, 89, 600, 7500)] == ["5 s", "89 s", "10 min", "2 h 05 min"]


def test_evaluation_set_of_arrays_can_be_built_by_hand():
    clips = [Clip("a"), Clip("b")]
    made = EvaluationSet("two", clips, lambda index: synthesise(1.0, index), np.array([1.0, 1.0]))
    assert evaluate_embeddings(np.eye(2, dtype=np.float32), made)["clips"] == 2
