"""Unlock something when its owner speaks: `python examples/unlock.py ana` (enrol first: `emoinv enroll ana --mic`)."""

import sys

from emoinv_edge import Encoder, Microphone, ProfileStore
from emoinv_edge.microphone import Gap


def wait_for(name: str, store: ProfileStore, encoder: Encoder) -> None:
    """Return when `name` has been heard and accepted."""
    # Follows the store: who is removed from it, or whose profile expires, opens nothing from then on.
    stream = store.verifier(name, encoder, target_far=0.01).stream(encoder.spec.sample_rate)
    with Microphone(encoder.spec.sample_rate, retry=True) as microphone:
        for item in microphone:
            decisions = stream.gap(item.num_samples) if isinstance(item, Gap) else stream.process(item)
            if any(decision.accepted for decision in decisions):
                return


if __name__ == "__main__":
    wait_for(sys.argv[1], ProfileStore(), Encoder.default())
    print("unlocked")
