"""The audit of labels: it finds what was put in, and leaves good labels alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.training import TINY_SPEC, prepared, tiny_encoder
from train.__main__ import main
from train.audit import (
    Corrections,
    apply_corrections,
    audit,
    audit_embeddings,
    correct_labels,
    find_copies,
    format_audits,
    read_corrections,
    write_corrections,
)
from train.model import save_checkpoint
from train.prepare import PreparedSet, write_set

DIM = 48
NAMES = [f"toy-{number:02}" for number in range(30)]


def voices(seed, speakers=NAMES, clips=6, people=None, strays=()):
    """Two encoders' embeddings of `clips` clips of each id; `people` names whose voice an id has, `strays` other clips.

    Each encoder sees the same people in a space of its own.
    """
    people = people or {}
    labels = [speaker for speaker in speakers for _ in range(clips)]
    who = [people.get(speaker, speaker) for speaker in labels]
    for number, person in strays:
        who[number] = person
    found = {}
    for encoder in ("one", "two"):
        rng = np.random.default_rng((seed, len(encoder), ord(encoder[0])))
        centres = {person: rng.normal(size=DIM) for person in sorted({*speakers, *who})}
        found[encoder] = np.array([centres[person] + 0.6 * rng.normal(size=DIM) for person in who], np.float32)
    return labels, found


def audited(labels, embeddings, copies=(), genders=None):
    return audit_embeddings("toy", len(labels), range(len(labels)), labels, embeddings, copies, genders)


@pytest.mark.parametrize("seed", range(5))
def test_true_labels_are_left_alone(seed):
    found = audited(*voices(seed))
    assert found.corrections == Corrections()
    assert found.eer_before == found.eer_after and max(found.eer_before.values()) < 1.0


def test_two_ids_of_one_person_are_merged_and_the_errors_they_made_go():
    found = audited(*voices(1, people={"toy-07": "toy-03", "toy-11": "toy-03", "toy-20": "toy-19"}))
    assert found.corrections.merge == (("toy-03", "toy-07", "toy-11"), ("toy-19", "toy-20"))
    assert not found.corrections.drop_ids and not found.corrections.drop_clips
    assert all(found.eer_after[name] < found.eer_before[name] for name in found.eer_before)


def test_a_pair_that_only_one_encoder_takes_for_one_person_is_unknown():
    labels, alone = voices(2)
    _, merged = voices(2, people={"toy-07": "toy-03"})
    found = audited(labels, {"one": merged["one"], "two": alone["two"]})
    assert found.corrections.merge == ()
    assert found.corrections.unknown_pairs == (("toy-03", "toy-07"),)


def test_a_chain_of_likenesses_is_no_merge():
    labels, embeddings = voices(1, people={"toy-07": "toy-03", "toy-11": "toy-03"})
    for rows in embeddings.values():  # the two others move apart, each to its own side of the one between them
        side = np.random.default_rng(8).normal(size=DIM)
        centre = rows[[label == "toy-03" for label in labels]].mean(axis=0)
        side -= centre * (side @ centre) / (centre @ centre)
        rows[[label == "toy-07" for label in labels]] += 0.15 * side
        rows[[label == "toy-11" for label in labels]] -= 0.15 * side
    found = audited(labels, embeddings).corrections
    assert found.merge == ()
    assert set(found.unknown_pairs) >= {("toy-03", "toy-07"), ("toy-03", "toy-11")}


def test_a_clip_of_somebody_else_is_dropped_and_the_id_stays():
    found = audited(*voices(3, strays=[(6 * 4 + 2, "toy-09")]))
    assert found.corrections.drop_clips == (26,) and found.corrections.drop_ids == ()


def test_an_id_that_holds_a_different_person_in_each_clip_is_dropped():
    strays = [(6 * 5 + take, f"toy-{take + 10}") for take in range(6)]
    found = audited(*voices(4, strays=strays))
    assert found.corrections.drop_ids == ("toy-05",) and found.corrections.merge == ()


def test_a_clip_that_is_like_nobody_is_hard_speech_and_stays():
    assert audited(*voices(3, strays=[(6 * 4 + 2, "somebody from nowhere")])).corrections == Corrections()


def test_ids_of_two_genders_are_never_one_person():
    labels, embeddings = voices(1, people={"toy-07": "toy-03", "toy-11": "toy-03"})
    genders = dict.fromkeys(NAMES, "male") | {"toy-07": "female"}
    assert audited(labels, embeddings, genders=genders).corrections.merge == (("toy-03", "toy-11"),)


def test_the_later_one_of_two_copies_is_dropped():
    assert audited(*voices(5), copies=[(3, 70)]).corrections.drop_clips == (70,)


def test_few_ids_are_not_judged_since_they_have_no_impostors_of_their_own():
    labels, embeddings = voices(6, speakers=NAMES[:4], people={"toy-01": "toy-00"})
    found = audited(labels, embeddings)
    assert found.corrections == Corrections() and found.eer_before == {}


def test_one_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="two encoders"):
        audit([prepared(tmp_path / "toy")], {"one": lambda waves: np.ones((len(waves), 4), np.float32)})


def test_a_whole_set_is_embedded_a_few_clips_of_each_id(tmp_path):
    clips = prepared(tmp_path / "toy", speakers=7, takes=3)
    heard, reported = {"one": 0, "two": 0}, []

    def embed(name):
        def embedded(waves):
            heard[name] += len(waves)
            return np.stack([np.abs(np.fft.rfft(wave[:4096]))[:64] for wave in waves]).astype(np.float32)

        return embedded

    (found,) = audit(
        [clips], {"one": embed("one"), "two": embed("two")}, clips_per_id=4,
        progress=lambda corpus, done, total: reported.append((corpus, done, total)),
    )  # fmt: skip
    assert (found.corpus, found.ids, found.clips) == ("toy", 7, 42)
    assert heard == {"one": 28, "two": 28} and reported[-1] == ("toy", 56, 56)


def test_equal_audio_is_found_at_another_level_too_and_takes_are_not(tmp_path):
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=8000) * np.repeat(rng.uniform(0.02, 0.3, 50), 160) for _ in range(4)]
    waves += [waves[1], 0.5 * waves[2]]
    with write_set(tmp_path / "toy") as add:
        for number, wave in enumerate(waves):
            samples = np.clip(np.rint(wave * 20000), -32768, 32767).astype(np.int16)
            add(("toy", f"toy-{number}", "", "", ""), samples, f"{number}.wav")
    assert find_copies(PreparedSet(tmp_path / "toy")) == [(1, 4), (2, 5)]


def test_corrections_are_kept_as_data_and_applied(tmp_path):
    clips = prepared(tmp_path / "toy", speakers=4).clips
    fixed = Corrections((("toy-0", "toy-1"),), ("toy-2",), (12,), (("toy-0", "toy-3"),))
    found = audited(*voices(0))
    path = tmp_path / "corrections.json"
    write_corrections(path, [found])
    write_corrections(path, [type(found)("other", 4, 16, fixed, (), {}, {})])
    assert read_corrections(path) == {"toy": Corrections(), "other": fixed}
    changed = apply_corrections(clips, fixed)
    assert [clip.speaker for clip in changed] == ["toy-0"] * 8 + [""] * 5 + ["toy-3"] * 3
    assert all(before.path == after.path for before, after in zip(clips, changed, strict=True))


@pytest.mark.parametrize("fixed", [Corrections(merge=(("toy-0", "toy-9"),)), Corrections(drop_clips=(99,))])
def test_corrections_of_another_version_of_a_corpus_are_refused(tmp_path, fixed):
    clips = prepared(tmp_path / "toy", speakers=4).clips
    with pytest.raises(ValueError, match=r"not there|beyond"):
        apply_corrections(clips, fixed)


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"toy": {"merge": []}}), json.dumps({"toy": 3})])
def test_another_file_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "corrections.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"corrections\.json"):
        read_corrections(path)


def test_the_table_has_one_row_a_corpus_with_its_errors_before_and_after():
    found = audited(*voices(1, people={"toy-07": "toy-03"}))
    lines = format_audits([found, audited(*voices(6, speakers=NAMES[:4]))]).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| toy | 30 | 180 | 1 | 0 | 0 | 0 | 0 | ")
    assert lines[3].endswith("| - | - |")


def test_the_command_prints_the_table_and_keeps_the_corrections(tmp_path, capsys):
    prepared(tmp_path / "toy", speakers=7, takes=3)
    for seed, name in enumerate(("one", "two")):
        save_checkpoint(tmp_path / f"{name}.pt", tiny_encoder(seed), TINY_SPEC)
    by = [str(tmp_path / "one.pt"), str(tmp_path / "two.pt")]
    out = tmp_path / "corrections.json"
    assert main(["audit", str(tmp_path / "toy"), "--by", *by, "--per-id", "2", "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| toy | 7 | 42 | ")
    assert list(read_corrections(out)) == ["toy"]
    assert main(["audit", str(tmp_path / "toy"), "--by", *by, "--per-id", "1"]) == 1
    assert main(["audit", str(tmp_path / "toy"), "--by", by[0]]) == 1
    assert "two encoders" in capsys.readouterr().err


def test_held_out_speakers_stay_so_whatever_the_corrections_rename(tmp_path):
    clips = prepared(tmp_path / "malayalam", speakers=11)
    names = sorted({clip.speaker for clip in clips.clips})
    held = {names[0], names[5], names[10]}
    assert clips.held_out == held and {clips.clips[i].speaker for i in clips.unheard()} == held
    correct_labels([clips], {"malayalam": Corrections(merge=((names[1], names[2]), (names[3], names[5])))})
    # The one who is also known by an id that training hears is no longer unheard.
    assert {clips.clips[i].speaker for i in clips.unheard()} == held - {names[5]}


def test_of_a_corpus_that_training_leaves_out_every_speaker_is_unheard(tmp_path):
    clips = prepared(tmp_path / "toy", speakers=4)
    assert clips.held_out == frozenset() and clips.unheard() == list(range(len(clips.clips)))


def test_a_corpus_that_an_encoder_did_not_learn_from_is_unheard_as_a_whole(tmp_path):
    clips = prepared(tmp_path / "crema_d", speakers=6)
    assert len({clips.clips[i].speaker for i in clips.unheard({"crema_d"})}) == 3
    assert clips.unheard({"malayalam"}) == list(range(len(clips.clips)))
