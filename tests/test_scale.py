"""The page of scale: its tables are those of what was measured, and what they come to for many items."""

import math
from pathlib import Path

import scale

from memlib.files import read_json

ROOT = Path(__file__).parent.parent
RUNS = {
    1_000: {"seconds": 12.0, "clock_seconds": 13.0, "memory_mib": 500.0},
    20_000: {"seconds": 50.0, "clock_seconds": 55.0, "memory_mib": 510.0},
}
KIND = {"runs": {str(count): run for count, run in RUNS.items()}} | scale.linear(RUNS)
RESULT = {"cores": 2} | dict.fromkeys(scale.KINDS, KIND)


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
    table = scale.tables(RESULT).splitlines()
    pictures = next(line for line in table if line.startswith("| 1,000,000 pictures"))
    assert pictures.endswith("| 33 minutes | 4 minutes | 31 seconds |")
    assert sum(line.endswith("| 2.00 | 552 |") for line in table) == len(scale.KINDS), "of an item more"


def test_an_audit_is_held_against_its_aims() -> None:
    text = scale.tables(RESULT)
    assert "took 13 seconds of the clock" in text
    assert "on a machine of 2 cores; the aim of 60 is met. Of 20,000 pictures it took 1.02 times the memory" in text
    assert text.count("is met") == 2
    slow = {str(count): run | {"clock_seconds": 61.0} for count, run in RUNS.items()}
    assert "the aim of 60 is missed" in scale.tables(RESULT | {"audit": KIND | {"runs": slow}})
    assert "the aim of 1.1 is missed" in scale.tables(RESULT | {"audit": KIND | {"memory_ratio": 1.11}})


def test_the_nulls_of_an_audit_are_no_suspects(tmp_path: Path) -> None:
    _, suspects, _, nulls = scale.write_audit(tmp_path / "items", 2, 4)
    pictures = [[path.read_bytes() for path in sorted(Path(folder).iterdir())] for folder in (suspects, nulls)]
    assert [*map(len, pictures)] == [2, scale.NULLS]
    assert len(set(pictures[0] + pictures[1])) == 2 + scale.NULLS


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / scale.PAGE).read_text()
    assert scale.with_tables(page, read_json(ROOT / scale.METRICS)) == page
