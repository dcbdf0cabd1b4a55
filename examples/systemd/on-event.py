"""Act on the events of `emoinv listen --json`, one JSON object a line on standard input."""

import json
import sys
from collections.abc import Iterable


def handle(lines: Iterable[str]) -> int:
    """Print a line for each accepted utterance; the number of them."""
    accepted = 0
    for line in lines:
        event = json.loads(line)
        if "error" in event:
            print("listening failed:", event["error"]["message"], flush=True)
        elif event["event"] == "gap":
            print("audio was lost:", event["reason"], flush=True)
        elif event["event"] == "decision" and event["final"] and event["verdict"] == "accept":
            accepted += 1
            print(f"{event['speaker']} spoke at {event['start_s']:.1f} s (LLR {event['score']:.1f})", flush=True)
    return accepted


if __name__ == "__main__":
    handle(sys.stdin)
