"""Development speech: clips that the encoder was not trained on, as the runtime hears them, clean and in noise."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.utterance import hear

from ..augment import add_noise
from ..evaluation.clips import Clip
from ..noise_and_rooms import read_noises
from ..prepare import PreparedSet
from .channels import CHANNELS, CorpusChannels, choose_parts

__all__ = ["DevelopmentSpeech", "join", "learnt_from", "measure", "noises_of", "pink_noise", "without_copies"]

CLIPS_PER_EMOTION = 16  # of a speaker, spread over the corpus's order
NOISE_SNR_DB = (5.0, 25.0)  # below 5 dB a verifier mostly refuses to decide


@dataclasses.dataclass(frozen=True, slots=True)
class DevelopmentSpeech:
    """Clips that a verifier could use, with what it would measure on them.

    A clip that is another one in noise or through a channel names it in `original`. One in noise is tried wherever that
    one is; those through channels are enrolled and tried among themselves (`channel_trials`), by their `roles`.
    """

    clips: Sequence[Clip]
    embeddings: NDArray[np.float32]  # (clips, embedding_dim), unit norm
    qualities: Sequence[SpeechQuality]
    original: Sequence[int] = ()  # of each clip the one that it was made of, or itself; by default all themselves
    conditions: Sequence[str] = ()  # of `CONDITIONS`; by default copies are in noise and all others clean
    roles: Sequence[str] = ()  # "profile" or "test" where it was heard through all channels, else ""

    def copies(self) -> dict[int, int]:
        """The clips that are another one in noise or through a channel, each with that one."""
        return {i: made_of for i, made_of in enumerate(self.original) if made_of != i}

    def condition(self, index: int) -> str:
        """In which of `CONDITIONS` a clip was heard."""
        if self.conditions:
            return self.conditions[index]
        return "noise" if self.original and self.original[index] != index else "clean"


def measure(
    encoder: Encoder,
    sets: Iterable[PreparedSet],
    progress: Callable[[int], None] = lambda done: None,
    noises: Sequence[NDArray[np.float32]] = (),
    channels: CorpusChannels | None = None,
) -> DevelopmentSpeech:
    """Embed and measure every usable clip, exactly as `Verifier.verify` would.

    Clips that a verifier would refuse take no part.

    Parameters
    ----------
    encoder : Encoder
    sets : iterable of PreparedSet
    progress : callable
        Takes the number of clips done.
    noises : sequence of ndarray
        Each clip is measured once more with a piece of one of them, `NOISE_SNR_DB` below its speech; without
        noises it is not.
    channels : CorpusChannels, optional
        A few clips of each speaker are heard through these too.

    Raises
    ------
    ValueError
        If no clip is usable.
    """
    clips: list[Clip] = []
    embeddings, qualities, original, conditions = [], [], [], []
    roles: dict[int, str] = {}
    rate = encoder.spec.sample_rate

    def add(clip: Clip, waveform: NDArray[np.float32], made_of: int | None, condition: str = "clean") -> bool:
        heard = hear(encoder, waveform, rate)
        if heard.quality is None or heard.embedding is None:
            return False
        original.append(len(clips) if made_of is None else made_of)
        conditions.append(condition)
        clips.append(clip)
        embeddings.append(heard.embedding.vector)
        qualities.append(heard.quality)
        return True

    done = 0
    for number, each in enumerate(sets):
        heard: dict[int, int] = {}  # clip here -> clip in its set
        copies: dict[int, int] = {}  # clip here -> the same in noise
        for index in _spread(each, learnt_from(encoder)):
            done += 1
            progress(done)
            clip, waveform = each.clips[index], each.waveform(index)
            if not add(clip, waveform, None):
                continue
            heard[len(clips) - 1] = index
            if noises:
                # Drawn from the clip's own name: the same noise whatever else is measured.
                rng = np.random.default_rng((zlib.crc32(f"{clip.corpus}/{clip.path}".encode()), index))
                noise = noises[int(rng.integers(len(noises)))]
                noisy = add_noise(waveform, noise, float(rng.uniform(*NOISE_SNR_DB)), rng)
                if add(clip, noisy, len(clips) - 1, "noise"):
                    copies[len(clips) - 2] = len(clips) - 1
        if channels is None:
            continue
        for part in choose_parts(clips, list(heard)):
            index = heard[part.index]
            clip = each.clips[index]
            roles |= dict.fromkeys((part.index, copies.get(part.index, part.index)), part.role)
            for condition in CHANNELS:
                rng = np.random.default_rng((zlib.crc32(f"{clip.corpus}/{clip.path}/{condition}".encode()), index))
                waveform = channels.hear(each.waveform(index), condition, (number, clip.corpus), part.variant, rng)
                if add(clip, waveform, part.index, condition):
                    roles[len(clips) - 1] = part.role
    if not clips:
        raise ValueError("no usable clip in the development speech; prepare it with `python -m train prepare`")
    return DevelopmentSpeech(
        clips, np.stack(embeddings), qualities, original, conditions, [roles.get(i, "") for i in range(len(clips))]
    )


def learnt_from(encoder: Encoder) -> frozenset[str] | None:
    """Corpora that an encoder learnt from, by its file; None if the file does not name them."""
    provenance = encoder.metadata.get("emoinv.provenance")
    corpora = provenance.get("corpora") if isinstance(provenance, Mapping) else None
    return frozenset(str(corpus["name"]) for corpus in corpora) if corpora else None


def _spread(prepared: PreparedSet, corpora: Collection[str] | None) -> list[int]:
    """At most `CLIPS_PER_EMOTION` clips of each speaker and emotion; of corpora in training, the speakers held out."""
    cells: dict[tuple[str, str], list[int]] = {}
    for index in prepared.unheard(corpora):
        clip = prepared.clips[index]
        cells.setdefault((clip.speaker, clip.emotion), []).append(index)
    chosen = []
    for found in cells.values():
        count = min(len(found), CLIPS_PER_EMOTION)
        chosen += [found[k * len(found) // count] for k in range(count)]
    return sorted(chosen)


def join(parts: Iterable[DevelopmentSpeech]) -> DevelopmentSpeech:
    """Several parts as one."""
    parts = list(parts)
    conditions = [each.condition(i) for each in parts for i in range(len(each.clips))]
    roles = [role for each in parts for role in (each.roles or [""] * len(each.clips))]
    clips: list[Clip] = []
    original: list[int] = []
    embeddings: list[NDArray[np.float32]] = []
    qualities: list[SpeechQuality] = []
    for each in parts:
        original += [len(clips) + i for i in each.original or range(len(each.clips))]
        clips += each.clips
        embeddings.append(each.embeddings)
        qualities += each.qualities
    return DevelopmentSpeech(clips, np.concatenate(embeddings), qualities, original, conditions, roles)


def without_copies(speech: DevelopmentSpeech) -> DevelopmentSpeech:
    """The clips as they were recorded, without those in noise or through channels."""
    copies = speech.copies()
    kept = [i for i in range(len(speech.clips)) if i not in copies]
    clips, qualities = [speech.clips[i] for i in kept], [speech.qualities[i] for i in kept]
    return DevelopmentSpeech(clips, speech.embeddings[kept], qualities)


def pink_noise(seconds: float, sample_rate: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose power falls by 3 dB an octave above 20 Hz, of RMS 0.1: what rooms and crowds come near to."""
    samples = round(seconds * sample_rate)
    rng = np.random.default_rng(seed)
    hz = np.fft.rfftfreq(samples, 1.0 / sample_rate)
    spectrum = rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))
    spectrum *= (hz >= 20.0) / np.sqrt(np.maximum(hz, 20.0))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(0.1 * noise / np.sqrt(np.mean(np.square(noise))), np.float32)


def noises_of(folders: Sequence[Path], sample_rate: int) -> list[NDArray[np.float32]]:
    """What `measure` adds: pink noise, and as many pieces of it as there are recordings where folders are given."""
    recorded = read_noises(list(folders)) if folders else []
    return [pink_noise(30.0, sample_rate, seed) for seed in range(max(1, len(recorded)))] + recorded
