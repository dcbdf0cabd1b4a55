"""Development speech through telephones, codecs and rooms: a few clips of each speaker, to enrol and to test.

Every corpus has two telephones, two codecs and two rooms. The clips that make a speaker's profile go through one of
them, the tests through both in turn: impostors come through the owner's own channel as often as through another.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..augment import reverberate
from ..channel import band_pass, set_level, telephone
from ..codecs import through_codec
from ..evaluation.clips import Clip, is_neutral
from ..rooms import Room, simulate_rooms

__all__ = ["CHANNELS", "CONDITIONS", "CorpusChannels", "Part", "choose_parts"]

CHANNELS = ("telephone", "codec", "room")
CONDITIONS = ("clean", "noise", *CHANNELS)
SPEAKERS = 60  # of a corpus
PROFILE_CLIPS = 4
TEST_CLIPS = 6
NEUTRAL_TESTS = 2  # of them, where the speaker is heard in other emotions too
SEED = 24

Waveform = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one clip is there for.

    Parameters
    ----------
    index : int
        Of the clip.
    role : {"profile", "test"}
    variant : {0, 1}
        Which of the corpus's two channels of a kind it goes through.
    """

    index: int
    role: str
    variant: int


def choose_parts(clips: Sequence[Clip], usable: Sequence[int]) -> list[Part]:
    """The clips of one corpus to hear through channels: up to four neutral ones to enrol, up to six others as tests.

    Parameters
    ----------
    clips : sequence of Clip
    usable : sequence of int
        Those of them that a verifier would take.
    """
    by_speaker: dict[str, list[int]] = {}
    for i in usable:
        by_speaker.setdefault(clips[i].speaker, []).append(i)
    names = np.random.default_rng(SEED).permutation(sorted(by_speaker))[:SPEAKERS]
    parts = []
    for number, name in enumerate(map(str, names)):
        own = by_speaker[name]
        rng = np.random.default_rng((SEED, zlib.crc32(f"{clips[own[0]].corpus}/{name}".encode())))
        drawn = [int(i) for i in rng.permutation(own)]
        neutral = [i for i in drawn if is_neutral(clips[i])]
        enrolled = neutral[: max(min(1, len(neutral)), min(PROFILE_CLIPS, len(neutral) - 1))]
        rest = [i for i in neutral if i not in enrolled]
        tests = _tests(clips, [i for i in drawn if not is_neutral(clips[i])], rest)
        parts += [Part(i, "profile", number % 2) for i in enrolled]
        parts += [Part(i, "test", k % 2) for k, i in enumerate(tests)]
    return parts


def _tests(clips: Sequence[Clip], emotional: Sequence[int], neutral: Sequence[int]) -> list[int]:
    """A few neutral clips, and the emotions in turn."""
    if not emotional:
        return list(neutral[:TEST_CLIPS])
    pools: dict[str, list[int]] = {}
    for i in emotional:
        pools.setdefault(clips[i].emotion, []).append(i)
    tests = list(neutral[:NEUTRAL_TESTS])
    while len(tests) < TEST_CLIPS and any(pools.values()):
        for pool in pools.values():
            if pool and len(tests) < TEST_CLIPS:
                tests.append(pool.pop(0))
    return tests


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusChannels:
    """Telephones, codecs and rooms, two of each kind for every corpus.

    Parameters
    ----------
    rooms : sequence of Room
        Two for each corpus, in the order of the corpora.
    """

    rooms: Sequence[Room]

    @classmethod
    def simulated(cls, corpora: int) -> CorpusChannels:
        """With rooms for so many corpora; they take about a second each."""
        return cls(simulate_rooms(2 * corpora, SEED))

    def hear(
        self, waveform: Waveform, condition: str, corpus: tuple[int, str], variant: int, rng: np.random.Generator
    ) -> Waveform:
        """What is left of speech behind a channel.

        Parameters
        ----------
        waveform : ndarray, shape (samples,), float32 in [-1, 1]
        condition : str
            Of `CHANNELS`.
        corpus : (int, str)
            Number and name of the clip's corpus.
        variant : {0, 1}
        rng : numpy.random.Generator
            Of the clip: its level, and the bit rate where the network chooses it.

        Raises
        ------
        ValueError
            If the condition is not known.
        """
        through: dict[str, Callable[[], Waveform]] = {
            "telephone": lambda: _through_telephone(waveform, _kind(corpus[1], variant, 3), rng),
            "codec": lambda: _coded(waveform, _kind(corpus[1], variant, 2), rng),
            "room": lambda: self._in_room(waveform, corpus[0], variant),
        }
        if condition not in through:
            raise ValueError(f"expected a condition of {', '.join(CHANNELS)}, got {condition!r}")
        return through[condition]()

    def _in_room(self, waveform: Waveform, number: int, variant: int) -> Waveform:
        """One place in three is near the microphone, the others are across the room."""
        room = self.rooms[(2 * number + variant) % len(self.rooms)]
        return reverberate(waveform, room.near if (number + variant) % 3 == 0 else room.far)


def _kind(corpus: str, variant: int, step: int) -> int:
    return (variant * step + zlib.crc32(corpus.encode())) % 4


def _levelled(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    return set_level(waveform, float(rng.uniform(-12.0, -3.0)))


def _through_telephone(waveform: Waveform, kind: int, rng: np.random.Generator) -> Waveform:
    """Two landlines and two mobiles."""
    levelled = _levelled(waveform, rng)
    if kind == 0:
        return telephone(levelled, 300.0, 3400.0, "mu")
    if kind == 1:
        return telephone(levelled, 250.0, 3500.0, "a", images=True)
    mobile = band_pass(levelled, 150.0, 3500.0)
    if kind == 2:
        return through_codec(mobile, "gsm")
    return through_codec(mobile, "amr", int(rng.choice((5900, 7950, 12200))))


def _coded(waveform: Waveform, kind: int, rng: np.random.Generator) -> Waveform:
    """What messengers and browsers send."""
    levelled = _levelled(waveform, rng)
    if kind == 0:
        return through_codec(levelled, "opus", 16000)
    if kind == 1:
        return through_codec(levelled, "mp3", 32000)
    if kind == 2:
        return through_codec(levelled, "opus", 8000)
    return through_codec(levelled, "g722") if rng.random() < 0.5 else through_codec(levelled, "opus", 24000)
