"""Make the clips of ``emoinv demo`` with the synthesiser flite (Debian's package ``flite``).

::

    apt-get install flite
    python emoinv_edge/demo/make_clips.py

Four of flite's voices speak the same sentences, four of them neutrally and one in each of four
other emotions. An emotion is a pitch, a range of pitch and a rate, which flite synthesises, and a level
and a tilt of the spectrum, which stand for vocal effort and are applied here. The voice ``rms``
ignores flite's pitch settings: its emotions differ in rate, level and tilt only.

The result is synthetic speech. It shows that the software works; it does not show how often
it errs on people.
"""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLE_RATE = 16000
# Folder name -> flite's voice: a US woman, a US man, a Scottish man, and a US man in the older
# technique of diphones.
VOICES = {"slt": "slt", "rms": "rms", "awb": "awb", "kal": "kal16"}
NEUTRAL_LEVEL_DB = -29.0
TILT_FROM_HZ = 500.0
COMPRESSION = 0.6  # of Vorbis, 0 best to 1 smallest: all clips together stay below 1 MB


@dataclasses.dataclass(frozen=True, slots=True)
class Emotion:
    """How a sentence is spoken, relative to the voice's own way."""

    pitch: float = 1.0  # factor on F0
    pitch_sd: float = 0.0  # standard deviation of F0 as a share of its mean; 0: the voice's own
    stretch: float = 1.0  # factor on durations
    level_db: float = 0.0
    tilt_db: float = 0.0  # per octave above 500 Hz


EMOTIONS = {
    "neutral": Emotion(),
    "excited": Emotion(pitch=1.3, pitch_sd=0.20, stretch=0.88, level_db=4.0, tilt_db=1.0),
    "tense": Emotion(pitch=1.15, pitch_sd=0.07, stretch=0.92, level_db=7.0, tilt_db=1.5),
    "tired": Emotion(pitch=0.88, pitch_sd=0.06, stretch=1.22, level_db=-5.0, tilt_db=-1.0),
    "subdued": Emotion(pitch=0.95, pitch_sd=0.04, stretch=1.1, level_db=-9.0, tilt_db=-1.5),
}

NEUTRAL_SENTENCES = (
    "The shop on the corner opens at nine and closes shortly after six in the evening.",
    "Please put the blue folder on the second shelf, next to the window, before you leave.",
    "Tomorrow will be mostly dry, with a light wind from the west and some cloud by noon.",
    "My train leaves from platform four, so I will meet you under the big clock.",
)
OTHER_SENTENCES = {
    "excited": "You will not believe what happened at the game today, we came back and won it!",
    "tense": "I have told you twice already, the door was locked and the keys are gone!",
    "tired": "It has been a very long day, and I would rather stay at home tonight.",
    "subdued": "I thought they would write to us again, but nobody has heard from them.",
}

# Each voice's mean F0 in Hz, measured on its neutral clips with WORLD's Harvest; flite's setting
# of the range is in Hz.
MEAN_F0_HZ = {"slt": 169.0, "rms": 101.0, "awb": 133.0, "kal": 92.0}


def synthesise(voice: str, emotion: Emotion, text: str) -> NDArray[np.float64]:
    """Let flite speak `text`; shape (samples,), in [-1, 1], 16 kHz."""
    settings = {"f0_shift": emotion.pitch, "duration_stretch": emotion.stretch}
    if emotion.pitch_sd:
        settings["int_f0_target_stddev"] = emotion.pitch_sd * MEAN_F0_HZ[voice] * emotion.pitch
    options = [item for name, value in settings.items() for item in ("--setf", f"{name}={value:.3f}")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        subprocess.run(["flite", "-voice", VOICES[voice], *options, "-t", text, "-o", str(path)], check=True)
        waveform, sample_rate = soundfile.read(path, dtype="float64")
    if sample_rate != SAMPLE_RATE or waveform.ndim != 1:
        raise SystemExit(f"expected {SAMPLE_RATE} Hz mono from flite, got {sample_rate} Hz, shape {waveform.shape}")
    samples: NDArray[np.float64] = waveform
    return samples


def set_effort(waveform: NDArray[np.float64], emotion: Emotion) -> NDArray[np.float64]:
    """Tilt the spectrum above 500 Hz, then set the level of the whole clip."""
    spectrum = np.fft.rfft(waveform)
    frequency = np.fft.rfftfreq(len(waveform), 1.0 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, TILT_FROM_HZ) / TILT_FROM_HZ)
    tilted = np.fft.irfft(spectrum * 10.0 ** (emotion.tilt_db * octaves / 20.0), len(waveform))
    level = 20.0 * np.log10(np.sqrt(np.mean(np.square(tilted))))
    levelled: NDArray[np.float64] = tilted * 10.0 ** ((NEUTRAL_LEVEL_DB + emotion.level_db - level) / 20.0)
    if np.abs(levelled).max() >= 1.0:
        raise SystemExit(f"{emotion} clips; lower its level_db")
    return levelled


def main() -> None:
    """Write every clip to ``clips/<voice>/<emotion>-<number>.ogg`` beside this file."""
    clips = Path(__file__).parent / "clips"
    for voice in VOICES:
        (clips / voice).mkdir(parents=True, exist_ok=True)
        takes = [("neutral", number, text) for number, text in enumerate(NEUTRAL_SENTENCES, start=1)]
        takes += [(emotion, 1, text) for emotion, text in OTHER_SENTENCES.items()]
        for emotion, number, text in takes:
            waveform = set_effort(synthesise(voice, EMOTIONS[emotion], text), EMOTIONS[emotion])
            path = clips / voice / f"{emotion}-{number}.ogg"
            soundfile.write(path, waveform, SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
            print(f"{path.relative_to(clips)}  {len(waveform) / SAMPLE_RATE:.1f} s")


if __name__ == "__main__":
    main()
