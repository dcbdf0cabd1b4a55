"""Progress of long work, in a log and in words."""

from __future__ import annotations

import io

from train.progress import Progress, time_left


def test_progress_in_a_log_ends_with_the_total_and_is_not_chatty():
    stream = io.StringIO()
    progress = Progress("embed", stream)
    for done in range(1, 101):
        progress(done, 100)
    assert stream.getvalue().startswith("embed: 100 in ") and stream.getvalue().count("\n") == 1


def test_time_left_is_readable():
    assert [time_left(s) for s in (5.2, 89, 600, 7500)] == ["5 s", "89 s", "10 min", "2 h 05 min"]
