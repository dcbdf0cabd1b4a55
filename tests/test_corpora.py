"""Each recipe on a small tree in the corpus's published layout; preparation on broken clips."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile

from tests.builders import synthesise
from train.__main__ import main
from train.corpora import CORPORA, Clip, clips_of, read_clip_csv
from train.prepare import PreparedSet, decode, prepare, trim_silence

# corpus -> (files, {file: (speaker, gender, emotion)}); other files of the tree must not come out.
LAYOUTS = {
    "speechocean762": (
        {"train/spk2gender": "0001 m\n0002 f\n", "test/spk2gender": "0003 f\n"},
        {
            "WAVE/SPEAKER0001/000010011.WAV": ("speechocean762-0001", "male", "neutral"),
            "WAVE/SPEAKER0003/000030012.WAV": ("speechocean762-0003", "female", "neutral"),
        },
    ),
    "speech_commands": (
        {"bed/readme.wav": ""},
        {
            "bed/00176480_nohash_0.wav": ("speech_commands-00176480", "", "neutral"),
            "cat/00176480_nohash_1.wav": ("speech_commands-00176480", "", "neutral"),
        },
    ),
    "arabic_commands": (
        {},
        {"dataset/backward/00000007_NO_01.wav": ("arabic_commands-00000007", "", "neutral")},
    ),
    "librispeech": (
        {"test-clean/61/70968/61-70968-0000.flac": "", "dev-other/116/288045/116-288045-0001.flac": ""},
        {
            "train-clean-100/103/1240/103-1240-0000.flac": ("librispeech-103", "", "neutral"),
            "librispeech_train-clean-100/1034-121119-0000.flac": ("librispeech-1034", "", "neutral"),
        },
    ),
    "malayalam": (
        {"speech.tsv": "sentence\tuser\tfileName\nabc\tu1\taudio/a.webm\nabc\tu2\taudio/missing.webm\n"},
        {"audio/a.webm": ("malayalam-u1", "", "neutral")},
    ),
    "emogator": (
        {"data/mp3/readme.mp3": ""},
        {"data/mp3/000001-03-2.mp3": ("emogator-000001", "", "burst03")},
    ),
    "picovoice": (
        {"audio/computer/notes.wav": ""},
        {
            "audio/computer/0386da81-9db7-499c-b4f8-910beec53c23.wav": ("", "", "neutral"),
            "data/speech/clean/04685ec1-bfbf-4c53-a852-60274a74d80e.flac": ("", "", "neutral"),
        },
    ),
    "emospeech": (
        {
            "field/background-noise-none-15629-abcdefabcdefabcd.wav": "",
            "field/bacho-safe-angry-1562-d14a028c2a3a2bc9.wav": "",
            "field/bacho-safe-None-1562-0123456789abcdef.wav": "",
        },
        {
            "web/bacho-safe-angry-1562996360436-c7b431195e2871a0.wav": ("emospeech-c7b431195e28", "", "angry"),
            "web/help-safe-calm-1562996360437-c7b431195e2871a0.wav": ("emospeech-c7b431195e28", "", "neutral"),
        },
    ),
    "ased": (
        {"01Neutral/n1-01-01-01-15.wav": "", "01Neutral/n1-01-01-01-25.wav": ""},
        {
            "01Neutral/n1-01-01-01-01.wav": ("ased-01", "female", "neutral"),
            "02Fearful/f2-07-02-02-66.wav": ("ased-66", "male", "fearful"),
        },
    ),
    "nemo": (
        {
            "data.tsv": "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
            "WR0_anger_1.wav\tanger\tA!\ta\tWR0\tmale\t30\nWR0_neutral_9.wav\tneutral\tA!\ta\tWR0\tmale\t30\n"
        },
        {"samples/WR0_anger_1.wav": ("nemo-WR0", "male", "angry")},
    ),
    "baved": (
        {},
        {
            "0/0-m-21-0-1-105.wav": ("baved-0", "male", "neutral"),
            "3/53-f-22-3-2-1100.wav": ("baved-46", "female", "high"),
        },
    ),
    "urdu": (
        {},
        {
            "Angry/SM1_F10_A010.wav": ("urdu-SM1", "male", "angry"),
            "Sad/SF4_F2_S02.wav": ("urdu-SF4", "female", "sad"),
        },
    ),
    "emodb": (
        {"wav/03a01X.wav": "", "wav/readme.wav": ""},
        {
            "wav/03a01Fa.wav": ("emodb-03", "male", "happy"),
            "wav/16b10Lb.wav": ("emodb-16", "female", "bored"),
        },
    ),
    "banglaser": (
        {
            "dataset/03-01-01-01-03-03-15.wav": "",  # a copy of another take
            "dataset/03-01-07-01-03-03-15.wav": "",  # no emotion of the corpus
        },
        {
            "dataset/03-01-05-01-02-03-12.wav": ("banglaser-12", "female", "neutral"),
            "dataset/01-01-04-02-03-01-15.wav": ("banglaser-15", "male", "surprised"),
        },
    ),
    "savee": (
        {"AudioData/XX/a01.wav": "", "ALL/XX_a01.wav": "", "AudioData/DC/x01.wav": ""},
        {
            "AudioData/DC/su07.wav": ("savee-DC", "male", "surprised"),
            "ALL/KL_n30.wav": ("savee-KL", "male", "neutral"),
        },
    ),
    "casia": (
        {"somebody/angry/201.wav": "", "201-angry-somebody.wav": ""},
        {
            "liuchanhg/surprise/201.wav": ("casia-liuchanhg", "female", "surprised"),
            "202-fear-ZhaoZuoxiang.wav": ("casia-zhaozuoxiang", "male", "fearful"),
        },
    ),
    "emovo": (
        {"data/EMOVO/f1/xxx-f1-b1.wav": "", "data/EMOVO/documents/readme.wav": ""},
        {
            "data/EMOVO/f1/gio-f1-b1.wav": ("emovo-f1", "female", "happy"),
            "data/EMOVO/m3/sor-m3-l4.wav": ("emovo-m3", "male", "surprised"),
        },
    ),
    "korean_tts": (
        {"Main/sh/wav/sh00001.wav": "", "Emotional/nea/nea00001.wav": "", "Emotional/nea/wav/nea00000.wav": ""},
        {
            "Emotional/plain-to-emotional/ema/wav/ema00100.wav": ("korean_tts-nea", "female", "neutral"),
            "Emotional/emotional-to-emotional/nek/wav/nek00101.wav": ("korean_tts-nek", "male", "happy"),
            "Emotional/emotional-to-emotional/neo/wav/neo00399.wav": ("korean_tts-neo", "male", "sad"),
        },
    ),
    "tess": (
        {},
        {
            "train/OAF_back_fear.wav": ("tess-OAF", "female", "fearful"),
            "testnew/0testYAF_gaze_ps39.wav": ("tess-YAF", "female", "surprised"),
        },
    ),
    "voxceleb": (
        {"wav/readme/x/y.wav": ""},
        {
            "wav/id10001/1zcIwhmdeo4/00001.wav": ("voxceleb-id10001", "", ""),
            "aac/id00012/21Uxsk56VDQ/00001.m4a": ("voxceleb-id00012", "", ""),
        },
    ),
    "crema_d": (
        {"VideoDemographics.csv": '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not"\n'},
        {
            "AudioWAV/1001_IEO_ANG_HI.wav": ("crema_d-1001", "male", "angry"),
            "AudioWAV/1040_ITH_SAD_X.wav": ("crema_d-1040", "", "sad"),
        },
    ),
    "esd": (
        {},
        {
            "0011/Angry/0011_000351.wav": ("esd-0011", "", "angry"),
            "0011/Neutral/train/0011_000001.wav": ("esd-0011", "", "neutral"),
        },
    ),
    "dusha": (
        {
            "crowd_train/raw_crowd_train.tsv": "hash_id\taudio_path\tsource_id\tspeaker_emo\tspeaker_text\n"
            "a\twavs/a.wav\ts1\tpositive\thi\na\twavs/a.wav\ts1\tpositive\thi\nb\twavs/b.wav\ts2\tother\tho\n"
            'q\twavs/q.wav\ts3\tsad\t"a quote\nc\twavs/c.wav\t\tsad\tcontrol\n',
            "crowd_test/raw_crowd_test.jsonl": '{"audio_path": "wavs/d.wav", "source_id": "s4", '
            '"speaker_emo": "angry"}\n',
            "podcast_test/raw_podcast_test.tsv": "audio_path\tsource_id\tspeaker_emo\nwavs/d.wav\ts9\tsad\n",
            "crowd_train/wavs/c.wav": "",
            "podcast_test/wavs/d.wav": "",
        },
        {
            "crowd_train/wavs/a.wav": ("dusha-s1", "", "happy"),
            "crowd_train/wavs/q.wav": ("dusha-s3", "", "sad"),
            "crowd_test/wavs/d.wav": ("dusha-s4", "", "angry"),
        },
    ),
    "msp_podcast": (
        {
            "Labels/labels_consensus.csv": "FileName,EmoClass,SpkrID,Gender\nM_0001.wav,A,127,Male\n"
            "M_0002.wav,X,127,Male\nM_0003.wav,N,Unknown,Male\n",
            "Audios/M_0002.wav": "",
            "Audios/M_0003.wav": "",
        },
        {"Audios/M_0001.wav": ("msp_podcast-127", "male", "angry")},
    ),
}  # fmt: skip


def grow(root, corpus):
    files, wanted = LAYOUTS[corpus]
    for name, text in {**files, **dict.fromkeys(wanted, "")}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return wanted


def test_every_recipe_is_tested():
    assert set(LAYOUTS) == set(CORPORA)


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_recipe_reads_the_published_layout_and_nothing_else(corpus, tmp_path):
    wanted = grow(tmp_path, corpus)
    found = clips_of(corpus, tmp_path)
    assert {
        clip.path.relative_to(tmp_path).as_posix(): (clip.speaker, clip.gender, clip.emotion) for clip in found
    } == wanted
    assert all(clip.corpus == corpus for clip in found)
    assert len(found) == len(wanted)


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_recipe_gives_the_same_order_each_time(corpus, tmp_path):
    grow(tmp_path, corpus)
    assert clips_of(corpus, tmp_path) == clips_of(corpus, tmp_path)


def test_corpora_that_ship_a_model_have_a_licence_that_allows_it():
    open_licences = {
        "free, commercial use allowed", "CC BY 4.0", "CC BY 4.0 as others list it", "CC BY-SA 4.0", "Apache-2.0",
        "ODbL",
    }  # fmt: skip
    assert {corpus.licence for corpus in CORPORA.values() if corpus.use == "open"} <= open_licences
    assert {corpus.use for corpus in CORPORA.values()} == {"open", "research", "development"}


def test_evaluation_speech_has_no_recipe():
    assert not {"ravdess", "alphanumeric"} & CORPORA.keys()


def test_unknown_corpus_missing_folder_and_wrong_folder_are_refused_each_by_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe for corpus 'nema'; known: .*nemo"):
        clips_of("nema", tmp_path)
    with pytest.raises(ValueError, match="not a folder; unpack ased there first"):
        clips_of("ased", tmp_path / "none")
    with pytest.raises(ValueError, match="no file fits the layout of ased"):
        clips_of("ased", tmp_path)


def test_a_list_of_ones_own_needs_path_and_speaker(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("path,speaker,emotion\na.wav,ana,\nb.wav,bo,sad\n")
    assert list(read_clip_csv(table)) == [
        Clip(tmp_path / "a.wav", "mine", "mine-ana", "", "neutral", ""),
        Clip(tmp_path / "b.wav", "mine", "mine-bo", "", "sad", ""),
    ]
    table.write_text("file,speaker\na.wav,ana\n")
    with pytest.raises(ValueError, match=r"\['path'\] missing"):
        list(read_clip_csv(table))


# Preparation


def write(path, wave, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


@pytest.fixture
def voices(tmp_path):
    """Five clips: good, quiet at the ends, corrupt, too short, silent."""
    speech = synthesise(1.0, 0)
    padded = np.concatenate((np.zeros(8000, np.float32), speech, np.zeros(16000, np.float32)))
    clips = [
        write(tmp_path / "good.wav", speech),
        write(tmp_path / "padded.wav", padded),
        tmp_path / "corrupt.wav",
        write(tmp_path / "short.wav", speech[:3000]),
        write(tmp_path / "silent.wav", np.zeros(16000)),
    ]
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF no more")
    return [Clip(path, "mine", f"mine-{n}", "female", "neutral", "hello, world") for n, path in enumerate(clips)]


def test_broken_clips_are_listed_with_their_reason_and_skipped(voices, tmp_path):
    done = []
    assert prepare(voices, tmp_path / "set", 1, lambda *progress: done.append(progress)) == (2, 3)
    rows = list(csv.DictReader((tmp_path / "set" / "skipped.csv").read_text().splitlines()))
    assert [row["path"].rpartition("/")[2] for row in rows] == ["corrupt.wav", "short.wav", "silent.wav"]
    assert all(row["reason"] for row in rows)
    assert "expected at least 0.4 s" in rows[1]["reason"]
    assert done == [(number, 5) for number in range(1, 6)]


def test_a_prepared_set_gives_back_the_speech_without_its_outer_silence(voices, tmp_path):
    prepare(voices, tmp_path / "set", 1)
    found = PreparedSet(tmp_path / "set")
    assert [clip.speaker for clip in found.clips] == ["mine-0", "mine-1"]
    assert found.clips[0].sentence == "hello, world" and found.clips[0].gender == "female"
    speech = decode(voices[0].path)
    first, second = found.waveform(0), found.waveform(1)
    assert len(first) > 0.8 * len(speech) and first.dtype == np.float32
    assert np.abs(first - speech[trim_silence(speech)]).max() < 2 / 32768
    assert abs(len(second) - len(first)) < 0.25 * 16000  # of 1.5 s of silence, the margins are left


def test_a_prepared_set_does_not_depend_on_the_number_of_workers(voices, tmp_path):
    for workers in (1, 3):
        prepare(voices * 4, tmp_path / f"set{workers}", workers)
    for name in ("audio.i16", "manifest.csv", "skipped.csv"):
        assert (tmp_path / "set1" / name).read_bytes() == (tmp_path / "set3" / name).read_bytes()


def test_a_stopped_preparation_leaves_no_set(voices, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(voices, tmp_path / "set", 1, stop)
    with pytest.raises(ValueError, match=r"no manifest\.csv"):
        PreparedSet(tmp_path / "set")


def test_a_set_whose_audio_was_cut_is_refused(voices, tmp_path):
    prepare(voices, tmp_path / "set", 1)
    audio = tmp_path / "set" / "audio.i16"
    audio.write_bytes(audio.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="prepare again"):
        PreparedSet(tmp_path / "set")


def test_other_rates_and_channels_become_16_khz_mono(tmp_path):
    wave = synthesise(1.0, 3, sample_rate=44100)
    path = write(tmp_path / "stereo.wav", np.stack((wave, wave), axis=1), 44100)
    assert len(decode(path)) == pytest.approx(16000, abs=2)


def test_webm_and_m4a_are_decoded(tmp_path):
    av = pytest.importorskip("av")
    wave = synthesise(1.0, 3, sample_rate=48000)
    for name, codec in (("a.webm", "libopus"), ("a.m4a", "aac")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray((wave[None] * 32767).astype(np.int16), "s16", "mono")
            frame.rate = 48000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        decoded = decode(tmp_path / name)
        assert len(decoded) == pytest.approx(16000, rel=0.1)
        assert 0.5 < np.std(decoded) / np.std(synthesise(1.0, 3)) < 2


def test_trimming_keeps_what_is_within_35_db_of_the_loudest():
    speech = synthesise(1.0, 0)
    faint = np.concatenate((speech * 10 ** (-50 / 20), speech, speech * 10 ** (-50 / 20)))
    part = trim_silence(faint)
    assert 16000 - 1600 - 160 <= part.start <= 16000 + 3200
    assert 32000 - 3200 <= part.stop <= 32000 + 1600 + 160


# The commands


def test_command_lists_corpora_with_use_and_licence(capsys):
    assert main(["corpora"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CORPORA) and "research" in out and "CC BY 4.0" in out


def test_command_counts_what_a_folder_holds(tmp_path, capsys):
    grow(tmp_path, "baved")
    assert main(["corpora", "baved", str(tmp_path)]) == 0
    assert "2 clips, 2 speakers" in capsys.readouterr().out
    assert main(["corpora", "baved", str(tmp_path / "none")]) == 1
    assert "unpack baved there first" in capsys.readouterr().err


def test_command_prepares_a_list_of_ones_own(voices, tmp_path, capsys):
    table = tmp_path / "mine.csv"
    table.write_text("path,speaker\n" + "".join(f"{clip.path.name},{n}\n" for n, clip in enumerate(voices)))
    assert main(["prepare", "mine", "--csv", str(table), "-o", str(tmp_path / "prepared"), "--workers", "1"]) == 0
    assert "2 clips, 3 skipped" in capsys.readouterr().out
    assert len(PreparedSet(tmp_path / "prepared" / "mine").clips) == 2
