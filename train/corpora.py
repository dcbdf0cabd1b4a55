"""Public speech corpora in their published layouts -> one list of clips.

A recipe walks an unpacked corpus and yields a `Clip` for each file: who speaks, in which emotion,
under which licence. Speakers are named ``corpus-id``, so that two corpora never share one.
Nothing is downloaded here.

``use`` is what a clip may train: "open" the models that ship, "research" only the research
variant and the ablation (and development figures), "development" nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["CORPORA", "VOXCELEB1_TEST", "Clip", "Corpus", "clips_of", "read_clip_csv"]


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One recording: where it is, who speaks and how.

    ``speaker`` is empty where the corpus names none; ``emotion`` is "neutral" for ordinary speech
    and empty where it is unknown; ``sentence`` is a key that equals only for the same words.
    """

    path: Path
    corpus: str
    speaker: str = ""
    gender: str = ""
    emotion: str = "neutral"
    sentence: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus: its recipe, its licence and what it may be used for."""

    name: str
    clips: Callable[[Path], Iterator[Clip]]
    licence: str
    use: str
    speech: bool = True  # False: bursts without words


def _sorted(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.rglob(pattern) if path.is_file())


def _matches(root: Path, pattern: str, name: str) -> Iterator[tuple[Path, re.Match[str]]]:
    """Files under `root` that fit the glob and whose name fits the whole regular expression."""
    for path in _sorted(root, pattern):
        match = re.fullmatch(name, path.name)
        if match:
            yield path, match


def speechocean762(root: Path) -> Iterator[Clip]:
    """``WAVE/SPEAKERnnnn/*.WAV`` with ``{train,test}/spk2gender``."""
    genders: dict[str, str] = {}
    for table in _sorted(root, "spk2gender"):
        for line in table.read_text().splitlines():
            speaker, gender = line.split()
            genders[speaker] = {"m": "male", "f": "female"}[gender]
    for path in _sorted(root, "*.WAV"):
        speaker = path.parent.name.removeprefix("SPEAKER")
        yield Clip(path, "speechocean762", f"speechocean762-{speaker}", genders.get(speaker, ""))


def speech_commands(root: Path) -> Iterator[Clip]:
    """``<word>/HASH_nohash_n.wav``; the hash is the speaker."""
    for path, match in _matches(root, "*.wav", r"([0-9a-f]+)_nohash_\d+\.wav"):
        yield Clip(path, "speech_commands", f"speech_commands-{match[1]}", sentence=path.parent.name)


def arabic_commands(root: Path) -> Iterator[Clip]:
    """``<word>/SSSSSSSS_NO_kk.wav``."""
    for path, match in _matches(root, "*.wav", r"(\d{8})_NO_\d+\.wav"):
        yield Clip(path, "arabic_commands", f"arabic_commands-{match[1]}", sentence=path.parent.name)


def librispeech(root: Path) -> Iterator[Clip]:
    """``train-*/**/speaker-chapter-utterance.flac`` at any depth; the dev and test parts are never trained on."""
    for path, match in _matches(root, "*.flac", r"(\d+)-(\d+)-(\d+)\.flac"):
        if any(re.search(r"train-(clean|other)", part) for part in path.relative_to(root).parts):
            yield Clip(path, "librispeech", f"librispeech-{match[1]}")


def malayalam(root: Path) -> Iterator[Clip]:
    """``audio/*.webm`` with ``speech.tsv`` (sentence, user, fileName); ``users.tsv`` is never read."""
    with open(root / "speech.tsv", newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            path = root / row["fileName"]
            if path.is_file():
                yield Clip(path, "malayalam", f"malayalam-{row['user']}", sentence=row["sentence"])


def emogator(root: Path) -> Iterator[Clip]:
    """``NNNNNN-EE-I.mp3``: speaker, one of 30 emotions, take."""
    for path, match in _matches(root, "*.mp3", r"(\d{6})-(\d{2})-(\d)\.mp3"):
        yield Clip(path, "emogator", f"emogator-{match[1]}", emotion=f"burst{match[2]}")


def picovoice(root: Path) -> Iterator[Clip]:
    """Wake words and intents without speaker names."""
    for path in sorted((*_sorted(root, "*.wav"), *_sorted(root, "*.flac"))):
        if re.fullmatch(r"[0-9a-f-]{36}\.(wav|flac)", path.name):
            yield Clip(path, "picovoice", sentence=path.parent.name if path.parent.name != "clean" else "")


def emospeech(root: Path) -> Iterator[Clip]:
    """``keyword-environment-emotion-time-HASH.wav``; one hash stands for unknown, backgrounds are noise."""
    for path, match in _matches(root, "*.wav", r"(.+)-(\w+)-(\w+)-(.+)-([0-9a-f]+)\.wav"):
        if match[1].startswith(("background", "unknown")) or match[5].startswith("d14a028c") or match[3] == "None":
            continue
        emotion = {"calm": "neutral"}.get(match[3], match[3])
        yield Clip(path, "emospeech", f"emospeech-{match[5][:12]}", emotion=emotion, sentence=match[1])


def ased(root: Path) -> Iterator[Clip]:
    """``0N<Emotion>/xn-yy-aa-gg-bb.wav``: sentence yy, take aa, gender gg, speaker bb."""
    names = {"n": "neutral", "f": "fearful", "h": "happy", "s": "sad", "a": "angry"}
    for path, match in _matches(root, "*.wav", r"([nfhsa])\d-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.wav"):
        if match[5] in {"09", "15", "21", "23", "25"}:  # names shared by more than one voice
            continue
        gender = {"01": "female", "02": "male"}.get(match[4], "")
        emotion = names[match[1]]
        yield Clip(path, "ased", f"ased-{match[5]}", gender, emotion, f"{emotion if match[2] > '05' else ''}{match[2]}")


def nemo(root: Path) -> Iterator[Clip]:
    """``samples/SSS_emotion_n.wav`` with ``data.tsv``."""
    emotions = {"anger": "angry", "fear": "fearful", "happiness": "happy", "sadness": "sad"}
    with open(root / "data.tsv", newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            path = root / "samples" / row["file_id"]
            if path.is_file():
                speaker = row["speaker_id"].strip()
                emotion = row["emotion"].strip()
                yield Clip(
                    path, "nemo", f"nemo-{speaker}", row["gender"].strip(), emotions.get(emotion, emotion),
                    row["normalized_text"].strip(),
                )  # fmt: skip


def baved(root: Path) -> Iterator[Clip]:
    """``{0..6}/speaker-gender-age-word-level-id.wav``; level 0 low, 1 neutral, 2 high."""
    levels = {"0": "low", "1": "neutral", "2": "high"}
    for path, match in _matches(root, "*.wav", r"(\d+)-([mf])-(\d+)-(\d)-([012])-(\d+)\.wav"):
        speaker = {"53": "46"}.get(match[1], match[1])  # one voice under two names
        gender = {"m": "male", "f": "female"}[match[2]]
        yield Clip(path, "baved", f"baved-{speaker}", gender, levels[match[5]], match[4])


def urdu(root: Path) -> Iterator[Clip]:
    """``<Emotion>/SGx_Fn_Em.wav``."""
    names = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}
    for path, match in _matches(root, "*.wav", r"(S([MF])\d+)_F\w+_([AHNS])\d+\.wav"):
        yield Clip(path, "urdu", f"urdu-{match[1]}", {"M": "male", "F": "female"}[match[2]], names[match[3]])


def tess(root: Path) -> Iterator[Clip]:
    """``OAF|YAF_word_emotion.wav``."""
    emotions = {"fear": "fearful", "ps": "surprised"}
    for path, match in _matches(root, "*.wav", r"\d*\w*?([OY]AF)_(\w+?)_(\w+?)\d*\.wav"):
        emotion = match[3].lower()
        yield Clip(path, "tess", f"tess-{match[1]}", "female", emotions.get(emotion, emotion), match[2])


def emodb(root: Path) -> Iterator[Clip]:
    """``wav/03a01Fa.wav``: speaker 03, sentence a01, emotion F (of German names), version a."""
    names = {
        "W": "angry", "L": "bored", "E": "disgust", "A": "fearful", "F": "happy", "N": "neutral", "T": "sad",
    }  # fmt: skip
    men = {"03", "10", "11", "12", "15"}
    for path, match in _matches(root, "*.wav", r"(\d\d)([ab]\d\d)([WLEAFNT])[a-z]\.wav"):
        gender = "male" if match[1] in men else "female"
        yield Clip(path, "emodb", f"emodb-{match[1]}", gender, names[match[3]], match[2])


def emovo(root: Path) -> Iterator[Clip]:
    """``f1/gio-f1-b1.wav``: emotion by an Italian name, speaker (f woman, m man), sentence."""
    names = {
        "dis": "disgust", "gio": "happy", "neu": "neutral", "pau": "fearful", "rab": "angry", "sor": "surprised",
        "tri": "sad",
    }  # fmt: skip
    for path, match in _matches(root, "*.wav", r"(dis|gio|neu|pau|rab|sor|tri)-(([fm])\d)-([a-z]+\d?)\.wav"):
        gender = {"f": "female", "m": "male"}[match[3]]
        yield Clip(path, "emovo", f"emovo-{match[2]}", gender, names[match[1]], match[4])


def korean_tts(root: Path) -> Iterator[Clip]:
    """``Emotional/*/nea/wav/nea00101.wav``: speaker and number, a hundred numbers to an emotion."""
    names = ("neutral", "happy", "angry", "sad")
    # Five voices speak in both parts, under two names (their neutral clips have a cosine of 0.80 to 0.92, others 0.67).
    same = {"ema": "nea", "emb": "neb", "emf": "nek", "emg": "nel", "emh": "nem"}
    for path, match in _matches(root, "*.wav", r"([en][em][a-o])00([0-3]\d\d)\.wav"):
        if path.parent.parent.name == match[1] and match[2] != "000":
            speaker = same.get(match[1], match[1])
            gender = "female" if speaker[-1] < "f" else "male"
            emotion = names[(int(match[2]) - 1) // 100]
            yield Clip(path, "korean_tts", f"korean_tts-{speaker}", gender, emotion)


def banglaser(root: Path) -> Iterator[Clip]:
    """``03-01-EE-II-SS-RR-AA.wav``: emotion EE, intensity, sentence SS, take RR, actor AA (odd a man)."""
    names = {"01": "happy", "02": "sad", "03": "angry", "04": "surprised", "05": "neutral"}
    # Two clips are there twice, under the names of two takes.
    twice = {"03-01-01-01-03-03-15.wav", "03-01-01-01-01-03-17.wav"}
    for path, match in _matches(root, "*.wav", r"0[13]-01-(0[1-5])-0[12]-(0[1-3])-0[1-3]-(\d\d)\.wav"):
        if path.name not in twice:
            gender = "male" if int(match[3]) % 2 else "female"
            yield Clip(path, "banglaser", f"banglaser-{match[3]}", gender, names[match[1]], match[2])


def savee(root: Path) -> Iterator[Clip]:
    """``AudioData/DC/a01.wav``, or all in one folder as ``DC_a01.wav``: one of four men, emotion, number."""
    names = {
        "a": "angry", "d": "disgust", "f": "fearful", "h": "happy", "n": "neutral", "sa": "sad", "su": "surprised",
    }  # fmt: skip
    for path, match in _matches(root, "*.wav", r"(?:(DC|JE|JK|KL)_)?(sa|su|[adfhn])(\d\d)\.wav"):
        speaker = match[1] or path.parent.name
        if speaker in {"DC", "JE", "JK", "KL"}:
            yield Clip(path, "savee", f"savee-{speaker}", "male", names[match[2]], match[2] + match[3])


def casia(root: Path) -> Iterator[Clip]:
    """``liuchanhg/angry/201.wav``, or all in one folder as ``201-angry-liuchanhg.wav``: two women, two men."""
    genders = {"liuchanhg": "female", "zhaoquanyin": "female", "wangzhe": "male", "zhaozuoxiang": "male"}
    names = {"fear": "fearful", "surprise": "surprised"}
    for path, match in _matches(root, "*.wav", r"(\d{3})(?:-(\w+)-(\w+))?\.wav"):
        emotion, speaker = (match[2], match[3]) if match[2] else (path.parent.name, path.parent.parent.name)
        if speaker.lower() in genders:
            yield Clip(
                path, "casia", f"casia-{speaker.lower()}", genders[speaker.lower()], names.get(emotion, emotion),
                match[1],
            )  # fmt: skip


# The speakers of VoxCeleb1's test list, whom nobody trains on.
VOXCELEB1_TEST = frozenset(f"voxceleb-id{number}" for number in range(10270, 10310))


def voxceleb(root: Path) -> Iterator[Clip]:
    """VoxCeleb 1 and 2: ``idNNNNN/video/utterance.{wav,m4a,flac}`` at any depth; no name is in both."""
    for path in _sorted(root, "*"):
        if path.suffix in {".wav", ".m4a", ".flac"} and re.fullmatch(r"id\d{5}", path.parent.parent.name):
            yield Clip(path, "voxceleb", f"voxceleb-{path.parent.parent.name}", emotion="")


def crema_d(root: Path) -> Iterator[Clip]:
    """``AudioWAV/1001_IEO_ANG_HI.wav``; the gender of each actor from ``VideoDemographics.csv`` where it is there."""
    names = {"ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
    genders: dict[str, str] = {}
    for table in _sorted(root, "VideoDemographics.csv"):
        with open(table, encoding="utf-8-sig", newline="") as rows:
            genders |= {row["ActorID"]: row["Sex"].lower() for row in csv.DictReader(rows)}
    for path, match in _matches(root, "*.wav", r"(\d{4})_([A-Z]{3})_([A-Z]{3})_[A-Z]{1,2}\.wav"):
        yield Clip(path, "crema_d", f"crema_d-{match[1]}", genders.get(match[1], ""), names[match[3]], match[2])


def esd(root: Path) -> Iterator[Clip]:
    """``0001/Angry/**/0001_000351.wav``."""
    names = {"Neutral": "neutral", "Angry": "angry", "Happy": "happy", "Sad": "sad", "Surprise": "surprised"}
    for path, match in _matches(root, "*.wav", r"(\d{4})_(\d{6})\.wav"):
        emotion = next((names[part] for part in path.parts if part in names), "")
        yield Clip(path, "esd", f"esd-{match[1]}", emotion=emotion, sentence=str((int(match[2]) - 1) % 350))


def dusha(root: Path) -> Iterator[Clip]:
    """``crowd_{train,test}/raw_crowd_*.tsv``, or ``.jsonl`` (audio_path, source_id, speaker_emo), beside ``wavs``.

    A clip has a row for each annotator; rows without a speaker are the annotators' controls. Podcasts have no audio.
    """
    names = {"neutral": "neutral", "angry": "angry", "sad": "sad", "positive": "happy"}
    tables = {path.with_suffix(""): path for path in (*_sorted(root, "raw_crowd_*.jsonl"), *_sorted(root, "*.tsv"))}
    for table in sorted(path for path in tables.values() if path.name.startswith("raw_crowd_")):
        with open(table, newline="", encoding="utf-8") as lines:
            tabbed = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            seen: set[str] = set()
            for row in tabbed if table.suffix == ".tsv" else map(json.loads, lines):
                if row["audio_path"] in seen or row["speaker_emo"] not in names or not row["source_id"]:
                    continue
                seen.add(row["audio_path"])
                path = table.parent / row["audio_path"]
                if path.is_file():
                    yield Clip(
                        path, "dusha", f"dusha-{row['source_id']}", emotion=names[row["speaker_emo"]],
                        sentence=row.get("speaker_text") or "",
                    )  # fmt: skip


def msp_podcast(root: Path) -> Iterator[Clip]:
    """``Audios/*.wav`` with ``Labels/labels_consensus.csv`` (FileName, EmoClass, SpkrID, Gender)."""
    names = {"A": "angry", "S": "sad", "H": "happy", "U": "surprised", "F": "fearful", "D": "disgust", "N": "neutral"}
    for table in _sorted(root, "labels_consensus.csv"):
        with open(table, newline="", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                path = root / "Audios" / row["FileName"]
                if path.is_file() and row["EmoClass"] in names and row["SpkrID"] != "Unknown":
                    yield Clip(
                        path, "msp_podcast", f"msp_podcast-{row['SpkrID']}", row["Gender"].lower(),
                        names[row["EmoClass"]],
                    )  # fmt: skip


def read_clip_csv(table: Path) -> Iterator[Clip]:
    """A user's own list: columns path, speaker and optionally gender, emotion, sentence; paths relative to it."""
    with open(table, newline="", encoding="utf-8") as rows:
        reader = csv.DictReader(rows)
        missing = {"path", "speaker"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{table}: expected the columns path and speaker, {sorted(missing)} missing; add a header")
        for row in reader:
            yield Clip(
                table.parent / row["path"], table.stem, f"{table.stem}-{row['speaker']}", row.get("gender") or "",
                row.get("emotion") or "neutral", row.get("sentence") or "",
            )  # fmt: skip


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus("speechocean762", speechocean762, "free, commercial use allowed", "open"),
        Corpus("speech_commands", speech_commands, "CC BY 4.0", "open"),
        Corpus("arabic_commands", arabic_commands, "CC BY 4.0", "open"),
        Corpus("librispeech", librispeech, "CC BY 4.0", "open"),
        Corpus("malayalam", malayalam, "CC BY-SA 4.0", "open"),
        Corpus("emogator", emogator, "Apache-2.0", "open", speech=False),
        Corpus("picovoice", picovoice, "Apache-2.0", "open"),
        Corpus("emospeech", emospeech, "CC BY-NC-SA 4.0", "research"),
        Corpus("ased", ased, "none stated", "research"),
        Corpus("nemo", nemo, "CC BY-NC-SA 4.0", "research"),
        Corpus("baved", baved, "none stated", "research"),
        Corpus("urdu", urdu, "research only", "research"),
        Corpus("emodb", emodb, "free of charge, no licence stated", "research"),
        Corpus("emovo", emovo, "research only", "research"),
        Corpus("korean_tts", korean_tts, "CC BY-NC-SA 4.0", "research"),
        Corpus("banglaser", banglaser, "CC BY 4.0 as others list it", "open"),
        Corpus("savee", savee, "free for research", "research"),
        Corpus("casia", casia, "none stated", "research"),
        Corpus("tess", tess, "CC BY-NC-ND 4.0", "development"),
        Corpus("voxceleb", voxceleb, "CC BY 4.0 (metadata); audio as its owners say", "research"),
        Corpus("crema_d", crema_d, "ODbL", "open"),
        Corpus("esd", esd, "research only", "research"),
        Corpus("dusha", dusha, "public licence with attribution", "research"),
        Corpus("msp_podcast", msp_podcast, "academic licence", "research"),
    )
}


def clips_of(corpus: str, root: Path) -> list[Clip]:
    """Every clip of a corpus unpacked at `root`.

    Raises
    ------
    ValueError
        If the corpus has no recipe, the folder is missing, or nothing in it fits the published layout.
    """
    if corpus not in CORPORA:
        raise ValueError(f"no recipe for corpus {corpus!r}; known: {', '.join(CORPORA)} (or give a CSV of your own)")
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; unpack {corpus} there first")
    clips = list(CORPORA[corpus].clips(root))
    if not clips:
        doc = (CORPORA[corpus].clips.__doc__ or "").split("\n")[0]
        raise ValueError(f"{root}: no file fits the layout of {corpus} ({doc}); is this its top folder?")
    return clips
