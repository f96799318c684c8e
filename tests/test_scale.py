"""The page of scale: its tables are those of what was measured, and what they come to for many items."""

import math
from pathlib import Path

import scale

from memlib.files import read_json

ROOT = Path(__file__).parent.parent
RUNS = {1_000: {"seconds": 12.0, "memory_mib": 500.0}, 20_000: {"seconds": 50.0, "memory_mib": 510.0}}


def test_an_item_more_takes_the_slope_of_a_line() -> None:
    found = scale.linear(RUNS)
    assert math.isclose(found["seconds_each"], 38 / 19_000)
    assert math.isclose(found["bytes_each"], 10 * 2**20 / 19_000)
    assert found["memory_ratio"] == 510 / 500
    more = scale.linear(RUNS | {101_000: {"seconds": 212.0, "memory_mib": 600.0}})
    assert math.isclose(more["seconds_each"], 2 / 1_000), "beyond, from the first to the last"
    assert more["memory_ratio"] == 510 / 500


def test_durations_are_put_in_words() -> None:
    words = {59: "59 seconds", 119: "119 seconds", 120: "2 minutes", 7_200: "2 hours", 172_800: "2 days"}
    assert {seconds: scale.duration(seconds) for seconds in words} == words


def test_many_items_take_their_seconds_shared_by_the_workers() -> None:
    kind = {"runs": {str(count): run for count, run in RUNS.items()}, "seconds_each": 0.002}
    table = scale.tables(dict.fromkeys(scale.KINDS, kind)).splitlines()
    pictures = next(line for line in table if line.startswith("| 1,000,000 pictures"))
    assert pictures.endswith("| 2.0 | 33 minutes | 4 minutes | 31 seconds |")


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / scale.PAGE).read_text()
    assert scale.with_tables(page, read_json(ROOT / scale.METRICS)) == page
