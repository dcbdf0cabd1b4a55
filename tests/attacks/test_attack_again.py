"""A second attack on each kind, thought of after the first were mended; the files beside hold the first."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import pickle
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.adaptation import Adapter
from emoinv_edge.cli import main
from emoinv_edge.cohort import cohort_of
from emoinv_edge.decision import Verdict
from emoinv_edge.device_calibration import MAX_SHIFT, Refinement
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import CalibrationError, EmoinvError, EnrolmentError, ModelFormatError
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.store import PLAINTEXT, Passphrase, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    BOB_HZ,
    NOW,
    RATE,
    build_encoder,
    calibration,
    enrolled,
    in_file,
    profile,
    quality,
    synthesise,
    unit_vectors,
)  # fmt: skip

KEY = bytes(range(32))
UTC = datetime.timezone.utc
HERS, HIS = synthesise(3.0, 9, ANA_HZ), synthesise(3.0, 9, BOB_HZ)
posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and forks as POSIX has them")


# -- 1: permission ---------------------------------------------------------------------------------------------------


def test_neither_a_pickle_nor_a_lent_list_carries_a_profile_past_its_expiry(encoder: Encoder) -> None:
    soon = datetime.datetime.now(UTC) + datetime.timedelta(seconds=1.5)
    lent = [dataclasses.replace(enrolled(encoder, "ana", ANA_HZ), expires=soon)]
    verifier = Verifier(encoder, lent)
    carried = pickle.dumps(verifier)
    lent[0] = dataclasses.replace(lent[0], expires=None)  # what was built keeps what it was built of
    time.sleep(max(0.0, (soon - datetime.datetime.now(UTC)).total_seconds() + 0.05))
    for late in (verifier, pickle.loads(carried)):
        assert late.verify(HERS, RATE).verdict is Verdict.NO_DECISION
        assert late.scores(HERS, RATE) == {}


# -- 2: models -------------------------------------------------------------------------------------------------------


def test_a_graph_in_two_pieces_is_no_way_around_what_one_may_not_hold(tmp_path: Path) -> None:
    """A protocol buffer's reader joins a field that stands twice: weights in one piece, their product in the other."""
    honest = build_encoder(tmp_path / "honest.onnx", metadata=in_file(calibration()))
    tall = onnx.numpy_helper.from_array(np.ones((100_000, 1), np.float32), "tall")
    wide = onnx.numpy_helper.from_array(np.ones((1, 100_000), np.float32), "wide")
    weights, product = onnx.ModelProto(), onnx.ModelProto()
    weights.graph.initializer.extend([tall, wide])
    product.graph.node.append(onnx.helper.make_node("MatMul", ["tall", "wide"], ["huge"]))
    for extra in ((weights, product), (product, weights)):
        path = tmp_path / "pieces.onnx"
        path.write_bytes(honest.read_bytes() + b"".join(each.SerializeToString() for each in extra))
        with pytest.raises(ModelFormatError, match="expected a graph of plain operators"):
            Encoder(path)


# -- 3: nothing but an accept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["ana.wav", "bob.wav"], ["bob.wav", "ana.wav"], ["ana.wav", "gone.wav"]])
@pytest.mark.parametrize("extra", [[], ["--json"], ["--csv"]])
def test_one_accept_among_several_recordings_is_no_accept(
    order: list[str], extra: list[str], encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ProfileStore(tmp_path / "p.db", PLAINTEXT).put(enrolled(encoder, "ana", ANA_HZ))
    soundfile.write(tmp_path / "ana.wav", HERS, RATE)
    soundfile.write(tmp_path / "bob.wav", HIS, RATE)
    words = ["--store", str(tmp_path / "p.db"), "--plaintext", "--model", str(encoder.path), *extra]
    files = [str(tmp_path / name) for name in order]
    assert main(["verify", *words, "--", "ana", *files]) != 0
    assert main(["verify", *words, "--", "ana", files[0], str(tmp_path)]) != 0
    capsys.readouterr()


# -- 4 and 5: learning -----------------------------------------------------------------------------------------------


def test_a_reject_that_is_confirmed_after_the_owner_changed_is_learnt_by_nobody(
    encoder: Encoder, store: ProfileStore
) -> None:
    adapter = Adapter(encoder, store, "ana", margin=0.0)
    rejected = adapter.verify(HIS, RATE)
    assert rejected.decision.verdict is Verdict.REJECT
    ProfileStore(store.path, KEY).put(enrolled(encoder, "ana", BOB_HZ))
    his = store.get("ana").exemplars
    assert not adapter.confirm(rejected.decision) and store.get("ana").exemplars == his
    assert not adapter.confirm(rejected.decision)


def test_a_chain_of_voices_that_goes_from_the_owner_to_another_arrives_nowhere(
    encoder: Encoder, store: ProfileStore
) -> None:
    """Each link is nearer to the one before than to the owner; the day's limit and the margin are off."""
    far = [synthesise(2.0, seed, 1.3 * ANA_HZ) for seed in range(60, 66)]
    before = [bool(store.verifier("ana", encoder).verify(each, RATE)) for each in far]
    adapter = Adapter(encoder, store, "ana", margin=0.0, per_day=1000)
    for step in range(24):
        adapter.verify(synthesise(2.0, 70 + step, ANA_HZ * 1.3 ** (step / 23.0)), RATE)
    after = [bool(store.verifier("ana", encoder).verify(each, RATE)) for each in far]
    assert sum(after) <= sum(before)


# -- 6: the device's calibration -------------------------------------------------------------------------------------


@given(
    shift=st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3)),
    raises=st.lists(st.lists(st.one_of(st.floats(), st.integers(), st.none()), max_size=3), max_size=4),
    reach=st.one_of(st.none(), st.floats(), st.text(max_size=3)),
)
@settings(max_examples=60, deadline=None)
def test_no_refinement_that_can_be_read_lowers_a_threshold_or_moves_a_score_far(
    shift: object, raises: object, reach: object
) -> None:
    values = Refinement("ab" * 32, 0.0, (), 12, 0, NOW, "cd" * 32).to_values()
    values |= {"shift": shift, "raises": raises, "narrowest_hz": reach}
    own = calibration()
    try:
        found = Refinement.from_values(values).apply(own)
    except CalibrationError:
        return
    except (ModelFormatError, ValueError):
        pytest.fail("a refinement that is refused only when it is used")
    assert abs(found.bias - own.bias) <= MAX_SHIFT
    for before, after in zip(own.far_tables, found.far_tables, strict=True):
        assert all(new >= old for old, new in zip(before.thresholds, after.thresholds, strict=True))


# -- 7: imported numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {"bandwidth_hz": 3000.0}, {"bandwidth_hz": None}, {"decay_s": 0.9, "snr_db": 6.0}, {"log_embedding_norm": None},
        {"log_f0_mean": None, "log_f0_std": 0.0}, {"net_speech_s": 600.0}, {"net_speech_s": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_wolf_is_a_wolf_whatever_circumstances_it_claims(claims: dict[str, float | None], tmp_path: Path) -> None:
    base = Encoder.default()
    cohort = cohort_of(base)
    assert cohort is not None
    mean = cohort.vectors.mean(axis=0)
    vectors = [mean, mean + 0.02 * unit_vectors(1, 1, len(mean))[0], mean]  # one, or several that seem to vary
    claimed = dataclasses.replace(quality(log_embedding_norm=1.2), **claims)
    for count in (1, 3):
        kept = tuple(Exemplar((v / np.linalg.norm(v)).astype(np.float32), claimed, NOW) for v in vectors[:count])
        for adapted in (0, count - 1):
            wolf = Profile("wolf", base.fingerprint, kept, NOW, num_adapted=adapted)
            store = ProfileStore(tmp_path / f"{count}{adapted}.db", KEY)
            ProfileStore(tmp_path / "other.db", KEY).put(wolf)
            file = tmp_path / f"{count}{adapted}.emoinv"
            ProfileStore(tmp_path / "other.db", KEY).export_profile("wolf", file, Passphrase("correct horse"))
            with pytest.raises(EnrolmentError):
                store.import_profile(
                    file, Passphrase("correct horse"), model_fingerprint=base.fingerprint, encoder=base
                )


# -- 8 and 13: folders and litter ------------------------------------------------------------------------------------


@posix
def test_an_output_that_is_a_planted_link_costs_no_victim(
    encoder: Encoder, store: ProfileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    soundfile.write(tmp_path / "ana.wav", HERS, RATE)
    acts: dict[str, Callable[[Path], object]] = {
        "e.npz": lambda out: main(["embed", str(tmp_path / "ana.wav"), "-o", str(out), "--model", str(encoder.path)]),
        "e.csv": lambda out: main(["embed", str(tmp_path / "ana.wav"), "-o", str(out), "--model", str(encoder.path)]),
        "ana.emoinv": lambda out: store.export_profile("ana", out, Passphrase("correct horse")),
    }
    for name, act in acts.items():
        victim.write_text("precious")
        (tmp_path / name).symlink_to(victim)
        act(tmp_path / name)
        assert victim.read_text() == "precious" and not (tmp_path / name).is_symlink()
    capsys.readouterr()


@posix
def test_what_only_looks_like_a_draft_is_neither_followed_nor_a_reason_to_fail(tmp_path: Path) -> None:
    ana = profile("ana", *unit_vectors(2, 0), model="ab" * 32)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.utime(victim, (1e9, 1e9))
    (tmp_path / "p.db.0123abcd.tmp").symlink_to(victim)
    (tmp_path / "p.db.key.0123abcd.part").mkdir()
    (tmp_path / "p.db.key.0123abcd.part" / "kept").write_text("x")
    os.mkfifo(tmp_path / "p.db.4567abcd.tmp")
    store = ProfileStore(tmp_path / "p.db")
    store.put(ana)
    store.rotate(store.own_key_file())
    assert victim.read_text() == "precious" and (tmp_path / "p.db.key.0123abcd.part" / "kept").is_file()
    assert ProfileStore(tmp_path / "p.db").names() == ["ana"]


# -- 9: one bad profile ----------------------------------------------------------------------------------------------


def test_damaged_exemplars_cost_their_profile_and_nobody_elses(
    encoder: Encoder, store: ProfileStore, caplog: pytest.LogCaptureFixture
) -> None:
    db = sqlite3.connect(store.path)
    hers = {row for (row,) in db.execute("SELECT id FROM exemplar")}
    store.put(enrolled(encoder, "bob", BOB_HZ))
    for act in ("UPDATE exemplar SET vector = zeroblob(7) WHERE id NOT IN", "DELETE FROM exemplar WHERE id NOT IN"):
        db.execute(f"{act} ({','.join(map(str, hers))})")
        db.commit()
        verifier = Verifier(encoder, ProfileStore(store.path, KEY))
        assert verifier.speakers == ("ana",) and list(verifier.left_out) == ["bob"]
        assert verifier.verify(HERS, RATE) and not verifier.verify(HIS, RATE)
    assert any(record.levelno >= logging.WARNING for record in caplog.records)
    store.remove("bob")
    assert store.names() == ["ana"]
    db.close()


# -- 10: the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["hole", "journal", "wal"])
def test_a_store_with_a_hole_or_a_foreign_journal_is_the_truth_or_an_error_and_soon(
    tail: str, encoder: Encoder, store: ProfileStore
) -> None:
    whole = store.path.read_bytes()
    if tail == "hole":
        with open(store.path, "r+b") as file:
            file.truncate(1 << 40)
    else:
        Path(f"{store.path}-{tail}").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(4096) + whole[:4096])
    started = time.monotonic()
    try:
        found = ProfileStore(store.path, KEY)
        assert found.names() == ["ana"]
        assert found.verifier("ana", encoder).verify(HERS, RATE)
        assert not found.verifier("ana", encoder).verify(HIS, RATE)
    except EmoinvError:
        pass
    assert time.monotonic() - started < 20.0


# -- 11: foreign text ------------------------------------------------------------------------------------------------


def test_markup_of_the_terminal_library_in_foreign_text_is_only_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "[link=http://example.org]agreed[/link] [/nope] [bold red]x[/] \\[y] :skull:"
    store = ProfileStore(tmp_path / "p.db", PLAINTEXT)
    for name in ("ana", "[bold]bo[/bold]", "[/]"):
        store.put(profile(name, *unit_vectors(2, 0), model="ab" * 32, consent=note))
    words = ["--store", str(store.path), "--plaintext"]
    for action in (["list"], ["show", "--", "ana"], ["show", "--", "[/]"], ["remove", "--", "[/]"]):
        assert main(["profiles", action[0], *words, *action[1:]]) == 0
        shown = capsys.readouterr().out
        assert action[0] != "show" or note in shown.replace("\n", " ")
        assert action[0] != "list" or "[bold]bo[/bold]" in shown


# -- 12: cost --------------------------------------------------------------------------------------------------------


def test_a_year_of_decisions_makes_neither_the_entry_nor_the_profile_dearer(store: ProfileStore) -> None:
    def cost() -> float:
        found = []
        for _ in range(5):
            started = time.process_time()
            store.note_verified("ana", "reject")
            found.append(time.process_time() - started)
        return min(found)

    first = cost()
    for _ in range(300):
        store.note_verified("ana", "reject", 1000)
    assert cost() < 3.0 * first + 0.02
    assert len(json.dumps(store.log(), default=str)) < 100_000


# -- 14: forks -------------------------------------------------------------------------------------------------------


@posix
def test_a_child_that_is_forked_while_another_thread_writes_the_store_answers(
    encoder: Encoder, store: ProfileStore
) -> None:
    verifier, stop = store.verifier("ana", encoder), threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.note_verified("ana", "reject")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(4):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                try:
                    answered = verifier.verify(HERS, RATE).accepted and store.names() == ["ana"]
                except EmoinvError:
                    answered = False
                os._exit(0 if answered else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert store.get("ana").name == "ana"
