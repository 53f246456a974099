"""The everyday part of the fault suite: kills, a sample of the crash points, damage and resets, in less than a minute.

`make faults` has all of it, and at full size.
"""

from __future__ import annotations

import test_clients
import test_damage
import test_kills
import test_network
from load import seeded

SAMPLE = 5  # of the crash points, others every time; AIOLOG_SEED repeats one


def test_six_kills(tmp_path):
    """F1: the server killed at random moments under load: everything once, in both sinks."""
    test_kills.kill_at_random(tmp_path, "F1", kills=6, workers=3)


def test_a_sample_of_the_points_of_a_server(tmp_path):
    """F2: killed at some of the named points, each once."""
    for point in seeded("F2-sample").sample(list(test_kills.POINTS), SAMPLE):
        directory = tmp_path / point
        directory.mkdir()
        test_kills.crash_often(directory, "F2", point, crashes=1, workers=2)


def test_some_damage_to_a_file(tmp_path):
    """F6: a live file that is torn, zeroed or flipped costs what is damaged."""
    damage = seeded("F6-sample").choice(list(test_damage.DAMAGES))
    test_damage.test_a_damaged_file_costs_what_is_damaged(tmp_path, damage, ("all", "errors"))


def test_some_damage_to_the_ledgers(tmp_path):
    """F7: a ledger that is gone, garbled or old costs duplicates at most."""
    harm = seeded("F7-sample").choice(list(test_damage.HARMS))
    test_damage.test_a_damaged_ledger_costs_duplicates_at_most(tmp_path, harm)


def test_resets_amid_frames(tmp_path):
    """F8: a connection that is reset after any number of bytes loses nothing."""
    _, proxy = test_network.through(tmp_path, "F8", "L4", 3, cut_after_bytes=2_000, cut_is_random=True)
    assert proxy.cuts > 1


def test_a_worker_that_is_killed_with_a_spool(tmp_path):
    """F30: the next worker delivers what it left."""
    test_clients.test_the_next_worker_delivers_what_the_last_one_left(tmp_path)
