"""A profile made again by another encoder, from the clips that it keeps."""

from __future__ import annotations

import dataclasses

import numpy as np

from .encoder import Encoder
from .errors import EnrolmentError
from .profiles import CLIP_RATE, Exemplar, Profile

__all__ = ["reenrolled"]


def reenrolled(profile: Profile, encoder: Encoder) -> Profile:
    """The profile with embeddings by `encoder`, from the clips that its exemplars keep.

    Raises
    ------
    EnrolmentError
        If no exemplar of the enrolment has one.
    """

    def again(exemplars: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
        found = []
        for exemplar in exemplars:
            if exemplar.audio is not None:
                waveform = np.frombuffer(exemplar.audio, "<i2").astype(np.float32) / np.float32(32768.0)
                embedding = encoder.embed(waveform, CLIP_RATE)
                quality = exemplar.quality.with_embedding_norm(embedding.norm)
                found.append(dataclasses.replace(exemplar, embedding=embedding.vector, quality=quality))
        return tuple(found)

    enrolled = again(profile.enrolled)
    if not enrolled:
        raise EnrolmentError(
            f"profile {profile.name!r} has no speech to enrol again from (it was enrolled without --keep-audio); "
            "record the speaker again"
        )
    adapted = again(profile.adapted)
    return dataclasses.replace(
        profile,
        model_fingerprint=encoder.fingerprint,
        exemplars=(*enrolled, *adapted),
        num_adapted=len(adapted),
        version="",
    )
