"""`emoinv profiles`: each action as a user meets it, for people and as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from emoinv_edge.cli import main
from emoinv_edge.cli import options as cli_options
from emoinv_edge.encoder import Encoder
from emoinv_edge.store import PLAINTEXT, KeyFile, Passphrase, ProfileStore
from emoinv_edge.store.portable import read_profile_file
from tests.builders import calibration, in_file, synthesise
from tests.store.profile_samples import MODEL, cheap_derive, sample_exemplar, sample_profile
from tests.store.raw_store import alter

EXPORT = "EMOINV_EXPORT_PASSPHRASE"


class Shell:
    """Runs `emoinv profiles` in this process on one store, and keeps what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.path = folder / "p.db"
        self.store = ProfileStore(self.path)
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str | Path) -> int:
        status = main(["profiles", *map(str, words), "--store", str(self.path)])
        self.out, self.err = self._capsys.readouterr()
        return status

    def answer(self, *words: str | Path) -> Any:
        """The JSON value printed by a command that succeeds."""
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr(Passphrase, "derive", cheap_derive)
    monkeypatch.delenv("EMOINV_STORE_KEY", raising=False)
    monkeypatch.setenv(EXPORT, "correct horse")
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(tmp_path, capsys)


def test_an_empty_store_is_listed_as_such_and_not_made(shell: Shell) -> None:
    assert shell("list") == 0
    assert "No profiles" in shell.out and "emoinv enroll" in shell.out
    assert shell.answer("list") == {"store": str(shell.path), "profiles": []}
    assert not shell.path.exists() and not (shell.folder / "p.db.key").exists()


def test_list_shows_what_there_is(shell: Shell) -> None:
    shell.store.put(sample_profile("ana", consent="on paper", audio=b"clip"))
    shell.store.put(sample_profile("[bold]bo", expires=datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)))
    shell.store.note_verified("ana", "accept")
    assert shell("list") == 0
    first, second = shell.out.splitlines()[1:]
    assert first.startswith("[bold]bo") and "2020-01-01" in first and first.rstrip().endswith("expired")
    assert second.startswith("ana") and "2 with speech" in second and MODEL[:12] in second
    bo, ana = shell.answer("list")["profiles"]
    assert (ana["name"], ana["num_exemplars"], ana["num_clips"], ana["expired"]) == ("ana", 2, 2, False)
    assert bo["expired"] and bo["problem"] == "expired"


def test_a_damaged_profile_is_listed_and_the_status_shows_it(shell: Shell) -> None:
    shell.store.put(sample_profile("ana"))
    alter(shell.path, "UPDATE profile SET body = x'00'")
    shell.store.put(sample_profile("bo"))
    assert shell("list") == 3
    assert "damaged" in shell.out and "'ana'" in shell.err
    assert shell("show", "ana") == 3 and "does not open" not in shell.out
    assert shell("show", "bo") == 0
    assert shell("remove", "ana") == 0 and shell("list") == 0


def test_show_lists_what_was_done(shell: Shell) -> None:
    shell.store.put(sample_profile("ana", consent="on paper"))
    shell.store.adapt(shell.store.get("ana"), sample_exemplar(3))
    shell.store.note_verified("ana", "accept")
    shell.store.note_verified("ana", "no_decision")
    assert shell("show", "ana") == 0
    for piece in ("on paper", "enrolled", "adapted", "1 accept", "1 no decision", "1 adaptations", MODEL):
        assert piece in shell.out
    shown = shell.answer("show", "ana")
    assert [event["event"] for event in shown["events"]] == ["enrolled", "adapted"]
    assert list(shown["verified"].values()) == [{"accept": 1, "no_decision": 1}]
    assert shown["consent"] == "on paper" and shown["adaptations"] == 1


def test_remove_takes_names_or_all_and_nothing_by_mistake(shell: Shell) -> None:
    for name in ("ana", "bo", "cy"):
        shell.store.put(sample_profile(name))
    assert shell("remove") == 3 and "--all" in shell.err
    assert shell("remove", "ana", "--all") == 3
    assert shell("remove", "ana", "nobody") == 3 and "nobody" in shell.err
    assert shell.store.names() == ["ana", "bo", "cy"]
    assert shell("remove", "ana") == 0 and shell.out == "removed: ana\n"
    assert shell.answer("remove", "--all") == {"action": "removed", "names": ["bo", "cy"]}
    assert shell.store.names() == []


def test_a_profile_goes_to_another_store_and_comes_back(shell: Shell, tiny_encoder: Encoder) -> None:
    model = tiny_encoder.path
    ana = sample_profile("ana", model=tiny_encoder.fingerprint, audio=b"clip")
    shell.store.put(ana)
    file = shell.folder / "ana.emoinv"
    assert shell("export", "ana", "-o", file) == 0
    assert b"clip" not in file.read_bytes() and file.stat().st_mode & 0o777 == 0o600
    assert shell("export", "ana", "-o", file) == 3 and "--force" in shell.err
    assert shell("export", "ana", "-o", file, "--force", "--without-audio") == 0
    assert shell("export", "nobody", "-o", shell.folder / "x") == 3
    assert shell("import", file, "--model", model) == 3 and "already" in shell.err
    assert shell("import", file, "--model", model, "--as", "anna") == 0
    assert shell.store.names() == ["ana", "anna"]
    assert all(exemplar.audio is None for exemplar in shell.store.get("anna").exemplars)
    assert shell.answer("import", file, "--model", model, "--replace") == {
        "action": "imported",
        "names": ["ana"],
        "file": str(file),
    }
    assert shell.store.get("ana") == sample_profile("ana", model=tiny_encoder.fingerprint)


def test_a_wrong_passphrase_and_a_wrong_model_are_refused_as_such(
    shell: Shell, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.store.put(sample_profile("ana"))
    file = shell.folder / "ana.emoinv"
    assert shell("export", "ana", "-o", file) == 0
    assert shell("import", file, "--model", tiny_encoder.path, "--as", "b") == 3
    assert "was made by model abababababab" in shell.err and "enrol the speaker again" in shell.err
    monkeypatch.setenv(EXPORT, "wrong horse")
    assert shell("import", file, "--model", tiny_encoder.path) == 3 and "passphrase is another one" in shell.err
    monkeypatch.setenv(EXPORT, "short")
    assert shell("import", file, "--model", tiny_encoder.path) == 3 and "at least 8" in shell.err
    monkeypatch.delenv(EXPORT)
    assert shell("import", file, "--model", tiny_encoder.path) == 3 and EXPORT in shell.err  # nobody to ask


def test_speech_that_was_kept_is_enrolled_again_with_one_command(
    shell: Shell,
    make_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = Encoder(make_encoder(seed=1)), Encoder(make_encoder(seed=2))
    clip = np.rint(synthesise(1.5, 1) * 32767.0).astype("<i2").tobytes()
    shell.store.put(sample_profile("ana", (1,), audio=clip, model=old.fingerprint))
    shell.store.put(sample_profile("bo", (2,), model=old.fingerprint))
    file = shell.folder / "ana.emoinv"
    assert shell("export", "ana", "-o", file) == 0
    assert shell("upgrade", "--model", new.path) == 3  # bo cannot be
    assert "upgraded: ana" in shell.out and "'bo'" in shell.err and "record the speaker again" in shell.err
    expected = new.embed(np.frombuffer(clip, "<i2").astype(np.float32) / 32768.0, 16000)
    (exemplar,) = shell.store.get("ana", model_fingerprint=new.fingerprint).exemplars
    assert float(exemplar.embedding @ expected) > 1.0 - 1e-6
    assert shell("upgrade", "ana", "--model", new.path) == 0 and "nothing" in shell.out
    assert shell("upgrade", "bo", "--model", new.path) == 3
    assert shell("import", file, "--as", "cy", "--model", new.path) == 3 and "import --upgrade" in shell.err
    assert shell("import", file, "--as", "cy", "--upgrade", "--model", new.path) == 0
    assert shell.store.get("cy", model_fingerprint=new.fingerprint).name == "cy"


def test_speech_kept_by_enroll_is_enough_for_another_model(shell: Shell, make_encoder: Callable[..., Path]) -> None:
    old, new = (make_encoder(seed=seed, metadata=in_file(calibration())) for seed in (1, 2))
    files = [shell.folder / f"{seed}.wav" for seed in (1, 2, 3)]
    for seed, file in enumerate(files, 1):
        pause = np.zeros(4000, np.float32)
        soundfile.write(file, np.concatenate([pause, synthesise(3.0, seed), pause]), 16000)
    for name, flags in (("ana", ["--keep-audio"]), ("bo", [])):
        words = ["enroll", name, *map(str, files), *flags, "--model", str(old), "--store", str(shell.path)]
        assert main(words) == 0
    kept = shell.store.get("ana")
    assert shell("upgrade", "ana", "--model", new) == 0
    upgraded = shell.store.get("ana", model_fingerprint=Encoder(new).fingerprint)
    assert [each.audio for each in upgraded.exemplars] == [each.audio for each in kept.exemplars]
    for before, after in zip(kept.exemplars, upgraded.exemplars, strict=True):
        # The circumstances are those of the recording, the norm is the new model's.
        assert before.audio is not None
        waveform = np.frombuffer(before.audio, "<i2").astype(np.float32) / 32768.0
        norm = Encoder(new).embed(waveform, 16000).norm
        assert after.quality == dataclasses.replace(before.quality, log_embedding_norm=math.log(norm))
    gram = [np.stack([each.embedding for each in one.exemplars]) for one in (kept, upgraded)]
    assert np.abs(gram[0] @ gram[0].T - gram[1] @ gram[1].T).max() < 0.05  # the two encoders differ by a rotation
    assert np.abs(gram[0] @ gram[1].T).max() < 0.8  # and by nothing less
    words = ["verify", "ana", str(files[0]), "--model", str(new), "--store", str(shell.path)]
    assert main(words) == 0
    assert shell("upgrade", "bo", "--model", new) == 3 and "without --keep-audio" in shell.err


def test_purge_removes_the_expired(shell: Shell) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    shell.store.put(sample_profile("ana", expires=past))
    shell.store.put(sample_profile("bo"))
    assert shell("purge") == 0 and shell.out == "purged: ana\n"
    assert shell("purge") == 0 and shell.out == "purged: nothing\n"
    assert shell.store.names() == ["bo"]


def test_rollback_undoes_the_last_adaptation(shell: Shell) -> None:
    shell.store.put(sample_profile("ana", (1, 2)))
    shell.store.adapt(shell.store.get("ana"), sample_exemplar(3))
    assert shell.answer("rollback", "ana") == {"action": "rolled back", "names": ["ana"], "recordings": 2}
    assert shell("rollback", "ana") == 3 and "no adaptation to undo" in shell.err


def test_rotate_renews_the_key_file_and_changes_the_kind_of_key(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.store.put(sample_profile("ana"))
    key = (shell.folder / "p.db.key").read_text()
    assert shell("rotate") == 0 and shell.out == "sealed anew: ana\n"
    assert (shell.folder / "p.db.key").read_text() != key
    monkeypatch.setenv("EMOINV_NEW_PASSPHRASE", "store passphrase")
    monkeypatch.setenv(cli_options.STORE_PASSPHRASE, "store passphrase")
    assert shell("rotate", "--new-passphrase") == 0
    assert shell("list") == 3 and "sealed with a passphrase" in shell.err
    assert shell("list", "--passphrase") == 0
    assert shell("rotate", "--passphrase", "--new-key-file", shell.folder / "other.key") == 0
    assert shell("list", "--key-file", shell.folder / "other.key") == 0
    assert ProfileStore(shell.path, KeyFile(shell.folder / "other.key")).names() == ["ana"]
    assert shell("rotate", "--key-file", shell.folder / "other.key") == 0  # a key file elsewhere keeps its content
    assert shell("rotate", "--key-file", shell.folder / "other.key", "--new-plaintext") == 0
    assert shell("list", "--plaintext") == 0 and ProfileStore(shell.path, PLAINTEXT).names() == ["ana"]


def test_passphrases_are_asked_for_at_a_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.store.put(sample_profile("ana"))
    monkeypatch.delenv(EXPORT)
    monkeypatch.setattr(cli_options.sys.stdin, "isatty", lambda: True)
    answers = iter(["correct horse", "another horse", "correct horse", "correct horse"])
    monkeypatch.setattr(cli_options.getpass, "getpass", lambda prompt: next(answers))
    assert shell("export", "ana", "-o", shell.folder / "x") == 3 and "differ" in shell.err
    assert shell("export", "ana", "-o", shell.folder / "x") == 0
    assert read_profile_file(shell.folder / "x", Passphrase("correct horse")).name == "ana"


def test_no_action_prints_a_secret(shell: Shell, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every action, done and refused, as text and as JSON: no key, passphrase, embedding, clip or pitch in any."""
    monkeypatch.setenv(cli_options.STORE_PASSPHRASE, "store passphrase")
    ana = sample_profile("ana", (1, 2), audio=b"THE-CLIP-ITSELF", model=tiny_encoder.fingerprint)
    shell.store.put(ana)
    shell.store.adapt(shell.store.get("ana"), sample_exemplar(3))
    file = shell.folder / "ana.emoinv"
    printed = ""
    statuses = set()
    for words in (
        ("list",),
        ("show", "ana"),
        ("export", "ana", "-o", file),
        ("export", "ana", "-o", file),
        ("import", file, "--model", tiny_encoder.path),
        ("import", file, "--model", tiny_encoder.path, "--as", "b"),
        ("rollback", "ana"),
        ("rollback", "ana"),
        ("upgrade", "ana", "--model", tiny_encoder.path),
        ("rotate",),
        ("list", "--passphrase"),
        ("list", "--plaintext"),
        ("show", "nobody"),
        ("purge",),
        ("remove", "b"),
        ("remove", "--all"),
    ):
        for form in ((), ("--json",)):
            statuses.add(shell(*words, *form))
            printed += shell.out + shell.err
            if form and shell.out:
                json.loads(shell.out)
    assert statuses == {0, 3} and '"ana"' in printed
    secrets = ["THE-CLIP-ITSELF", "correct horse", "store passphrase", "4.8125", "-7.5"]
    secrets.append((shell.folder / "p.db.key").read_text().strip())
    for exemplar in ana.exemplars:
        secrets += [str(value) for value in exemplar.embedding] + [f"{value:.4f}" for value in exemplar.embedding]
    for secret in secrets:
        assert secret not in printed, secret


@pytest.mark.parametrize("name", ["", " ana", "a\nb", "a" * 200])
def test_a_name_that_no_profile_can_have_is_an_error_and_no_crash(shell: Shell, name: str) -> None:
    shell.store.put(sample_profile("ana"))
    for words in (("show", name), ("remove", name), ("rollback", name), ("export", name, "-o", shell.folder / "x")):
        assert shell(*words) == 3
        assert "no profile can have this name" in shell.err and "Traceback" not in shell.err
    assert shell("import", shell.folder / "x", "--as", name) == 3
    assert "expected a name of 1 to 128" in shell.err and "Traceback" not in shell.err
