"""Development figures of an encoder by condition: what is enrolled and what is tested through clean air, a telephone,
a room or noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.spec import EncoderSpec

from . import augment
from .channel import set_level, telephone
from .evaluation.clips import is_neutral, thin
from .evaluation.metrics import eer
from .evaluation.protocols import ENROL_CLIPS, Trials, make_trials
from .model import SpeakerNet, embed_waveforms
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker
from .rooms import Room

__all__ = ["CONDITIONS", "ChannelJudge", "across"]

# What is enrolled through, and what is tested through.
CONDITIONS = (("clean", "clean"), ("clean", "tel"), ("tel", "tel"), ("clean", "room"), ("room", "room"))


class ChannelJudge:
    """EERs in percent of an encoder on development speech, by condition of enrolment and test (`CONDITIONS`).

    Parameters
    ----------
    sets : mapping of str to (PreparedSet, str)
        Name -> clips and protocol ("enrol" for emotional corpora, "same" for ordinary speech).
    rooms : sequence of Room
        Far microphones of the condition "room"; other rooms than those of the training.
    most : int
        Clips that are tested of each set, evenly over speakers and emotions; those of profiles come on top.
    longest_s : float
        Of a clip.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        sets: Mapping[str, tuple[PreparedSet, str]],
        rooms: Sequence[Room],
        most: int = 200,
        longest_s: float = 4.0,
        conditions: Sequence[tuple[str, str]] = CONDITIONS,
        seed: int = 5,
    ) -> None:
        self.spec, self.rooms, self.conditions, self.seed = spec, rooms, conditions, seed
        self.longest = round(longest_s * SAMPLE_RATE)
        self.sets = {
            name: (clips, _chosen(clips, protocol, most), protocol) for name, (clips, protocol) in sets.items()
        }

    def heard(self, waveform: NDArray[np.float32], condition: str, number: int) -> NDArray[np.float32]:
        """Clip `number` in a condition: "clean", "tel" (G.711, 300-3400 Hz), "room" (far), "noise" (white, 5 dB)."""
        rng = np.random.default_rng((self.seed, number))
        if condition == "tel":
            return telephone(set_level(waveform, -3.5))
        if condition == "room":
            return augment.reverberate(waveform, self.rooms[int(rng.integers(len(self.rooms)))].far)
        if condition == "noise":
            return augment.add_noise(waveform, rng.standard_normal(len(waveform), np.float32), 5.0, rng)
        if condition != "clean":
            raise ValueError(f"expected clean, tel, room or noise, got {condition!r}")
        return waveform

    def embed(self, encoder: SpeakerNet, name: str, condition: str) -> NDArray[np.float32]:
        """Embeddings (clips, embedding_dim) of unit norm of one set in one condition."""
        clips, indices, _ = self.sets[name]
        waves = [self.heard(clips.waveform(int(i))[: self.longest], condition, int(i)) for i in indices]
        return embed_waveforms(encoder, self.spec, lambda j: waves[j], [len(wave) for wave in waves])

    def __call__(self, encoder: SpeakerNet) -> dict[str, float]:
        figures: dict[str, float] = {}
        needed = dict.fromkeys(side for pair in self.conditions for side in pair)
        for name, (clips, indices, protocol) in self.sets.items():
            trials = make_trials([clips.clips[int(i)] for i in indices], protocol)
            sides = {condition: self.embed(encoder, name, condition) for condition in needed}
            for enrolled, tested in self.conditions:
                figures[f"{name}.{enrolled}-{tested}"] = 100.0 * across(trials, sides[enrolled], sides[tested])
        for enrolled, tested in self.conditions:
            values = [value for key, value in figures.items() if key.endswith(f".{enrolled}-{tested}")]
            figures[f"mean.{enrolled}-{tested}"] = float(np.mean(values))
        return figures


def _chosen(clips: PreparedSet, protocol: str, most: int) -> NDArray[np.int64]:
    """Clips to judge by: for "enrol", each speaker's first neutral ones and `most` others; else `most`."""
    if protocol != "enrol":
        return thin(clips.clips, most)
    profiles = [
        index
        for indices in by_speaker(clips.clips).values()
        for index in [i for i in indices if is_neutral(clips.clips[i])][:ENROL_CLIPS]
    ]
    tests = [i for i, clip in enumerate(clips.clips) if not is_neutral(clip)]
    return np.sort(np.array([*profiles, *(tests[i] for i in thin([clips.clips[i] for i in tests], most))], np.int64))


def across(trials: Trials, enrolled: NDArray[np.float32], tested: NDArray[np.float32]) -> float:
    """EER, a fraction, of trials whose two sides were heard in two conditions.

    Parameters
    ----------
    enrolled, tested : ndarray, shape (clips, embedding_dim)
        The same clips, each side's own embeddings of them.
    """
    both = Trials(trials.enrol, trials.test + np.int32(len(enrolled)), trials.target, trials.profiles)
    scores = both.scores(np.concatenate((enrolled, tested)))
    return eer(scores[trials.target], scores[~trials.target])
