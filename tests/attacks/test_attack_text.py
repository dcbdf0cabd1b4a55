"""Kind 11: text from elsewhere is shown harmless, and secrets are shown nowhere."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from pathlib import Path

import pytest
import soundfile

from emoinv_edge.cli import main
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import StoreError
from emoinv_edge.profiles import Profile
from emoinv_edge.store import PLAINTEXT, Passphrase, ProfileStore
from tests.builders import ANA_HZ, NOW, RATE, build_encoder, enrolled, profile, synthesise, unit_vectors

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\u2066\r\n\x00\x7f"
SHOWN = "\x1b\x9b\x07\x00\x7f\u202e\u2066\r"
UNSEEN = ["an\u00ada", "a\u034fna", "a\u115fna", "\u3164", "ana\uffa0", "a\u2800", "a\ufe0fna", "a\U000e0100"]
UNSEEN += ["a\u180bna", "a\u200bna", "a\u200dna", "\u202eana", "a\ufeffna", "ana\u2062", "a\U000e0041na", "a\u2028b"]
UNSEEN += ["a\tb", "a\nb", "\x1b[1m"]


def clean(text: str) -> bool:
    return not any(char in text for char in SHOWN)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The options of a store whose profile has a hostile consent note."""
    ana = profile("ana", *unit_vectors(2, 0), model="ab" * 32, consent=f"agreed {ESCAPES}")
    ProfileStore(tmp_path / "p.db", PLAINTEXT).put(ana)
    return ["--store", str(tmp_path / "p.db"), "--plaintext"]


def test_a_note_moves_no_cursor_and_changes_no_colour(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["list"], ["show", "ana"], ["show", "ana", "--json"], ["list", "--json"]):
        assert main(["profiles", *action, *words]) == 0
        out, err = capsys.readouterr()
        assert clean(out.replace("\n", "")) and clean(err)
        if "--json" in action and "show" in action:
            assert json.loads(out)["consent"] == f"agreed {ESCAPES}"


def test_what_a_model_claims_of_itself_is_shown_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = {
        "created": ESCAPES,
        "parents": {ESCAPES: ESCAPES},
        "corpora": [{"name": ESCAPES, "licence": ESCAPES}],
        "scheme": {ESCAPES: ESCAPES},
        "gates": {ESCAPES: {"passed": True, ESCAPES: 1}},
    }
    path = build_encoder(tmp_path / "m.onnx", metadata={"emoinv.provenance": claims})
    for words in (["show"], ["verify"], ["show", "--json"], ["verify", "--json"]):
        main(["model", words[0], str(path), *words[1:]])
        out, err = capsys.readouterr()
        assert clean(out) and clean(err)


@pytest.mark.skipif(sys.platform == "win32", reason="such names are impossible there")
def test_file_names_and_unknown_names_are_shown_harmless(
    words: list[str], tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "x\x1b[2J\x9b31m\u202e.wav"
    soundfile.write(tmp_path / "plain.wav", synthesise(3.0, 0), RATE)
    (tmp_path / "plain.wav").rename(odd)
    held = ProfileStore(tmp_path / "q.db", PLAINTEXT)
    held.put(enrolled(encoder, "ana", ANA_HZ))
    mine = ["--store", str(held.path), "--plaintext", "--model", str(encoder.path)]
    for command in (
        ["verify", *mine, "--", "ana", str(odd)], ["verify", *mine, "--json", "--", "ana", str(odd)],
        ["verify", *mine, "--", "x\x1b[2J", str(odd)], ["verify", *mine, "--", "ana", f"{odd}.gone"],
        ["identify", *mine, "--", str(odd)], ["listen", *mine, "--file", str(odd), "--", "ana"],
        ["profiles", "show", "x\x9b", *words], ["profiles", "remove", "\u202ex", *words],
        ["profiles", "import", str(odd), *words], ["model", "show", str(odd)],
    ):  # fmt: skip
        main(command)
        out, err = capsys.readouterr()
        assert clean(out) and clean(err), (command, out, err)


@pytest.mark.parametrize("name", UNSEEN, ids=ascii)
def test_a_new_name_holds_nothing_that_cannot_be_seen(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = profile("ana", *unit_vectors(1, 0), model="ab" * 32)
    store = ProfileStore(tmp_path / "p.db", PLAINTEXT)
    with pytest.raises(ValueError):
        store.put(dataclasses.replace(whole, name=name))
    word = Passphrase("correct horse")
    store.put(whole)
    store.export_profile("ana", tmp_path / "ana.emoinv", word)
    with pytest.raises(ValueError):
        store.import_profile(tmp_path / "ana.emoinv", word, model_fingerprint="ab" * 32, name=name)
    assert main(["enroll", "--store", str(store.path), "--plaintext", "--", name, "x.wav"]) == 3
    assert store.names() == ["ana"] and clean(capsys.readouterr().err)


def test_a_name_of_before_that_holds_such_a_character_still_opens(tmp_path: Path) -> None:
    """It is only that nobody new gets one."""
    old = Profile("a\ufe0fna", "ab" * 32, profile("x", *unit_vectors(1, 0), model="ab" * 32).exemplars, NOW)
    assert old.name == "a\ufe0fna"


# -- secrets ---------------------------------------------------------------------------------------------------------


def everything_in_the_traceback(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(shown.format())


@pytest.mark.parametrize("mistyped", ["ab" * 31 + "zz", "ab" * 31, "hunter2-hunter2", "ab" * 33])
def test_a_mistyped_key_or_passphrase_is_in_no_traceback(
    mistyped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOINV_STORE_KEY", mistyped)
    ana = profile("ana", *unit_vectors(1, 0), model="cd" * 32)
    with pytest.raises(StoreError) as caught:
        ProfileStore(tmp_path / "p.db").put(ana)
    # The frames of this test have it as the parameter's value.
    library = "\n".join(
        part for part in everything_in_the_traceback(caught.value).split("\n  File ") if "emoinv_edge" in part[:200]
    )
    assert library and mistyped not in library
    monkeypatch.setenv("EMOINV_STORE_PASSPHRASE", mistyped[:7])
    assert main(["profiles", "list", "--passphrase", "--store", str(tmp_path / "p.db")]) in (0, 3)
    assert mistyped[:7] not in capsys.readouterr().err


def test_a_short_passphrase_is_in_no_traceback() -> None:
    try:
        Passphrase("sec" + "ret")
    except ValueError as error:
        (frame,) = [part for part in everything_in_the_traceback(error).split("\n  File ") if "keys.py" in part[:200]]
        assert "secret" not in frame


def test_json_describes_the_voice_only_when_asked(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ProfileStore(tmp_path / "q.db", PLAINTEXT)
    store.put(enrolled(encoder, "ana", ANA_HZ))
    soundfile.write(tmp_path / "ana.wav", synthesise(3.0, 9, ANA_HZ), RATE)
    mine = ["--json", "--store", str(store.path), "--plaintext", "--model", str(encoder.path)]
    clip = str(tmp_path / "ana.wav")
    commands = (["verify", *mine, "--", "ana", clip], ["identify", *mine, "--", clip])
    for command in (*commands, ["listen", *mine, "--file", clip, "--", "ana"], ["enroll", *mine, "--", "bo", clip]):
        assert main(command) == 0
        assert not any(word in capsys.readouterr().out for word in ("log_f0", "envelope"))
        if command[0] != "enroll":
            assert main([command[0], "--verbose", *command[1:]]) == 0
            assert "log_f0_mean" in capsys.readouterr().out
