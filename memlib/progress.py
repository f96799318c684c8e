"""Progress of long work: a bar on a terminal, a line of plain text with the time left now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, done: int = 0, every_seconds: float = 15.0) -> Iterator[Item]:
    """Yield the items of a sized iterable and tell on stderr how far it is and how long it will take.

    `done` items were dealt with before.
    """
    total = done + len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, initial=done, total=total)
        return
    started = told = time.monotonic()
    for count, item in enumerate(items, start=done + 1):
        yield item
        now = time.monotonic()
        if now - told >= every_seconds:
            told = now
            left = (now - started) / (count - done) * (total - count) if total else None
            time_left = "" if left is None else f", about {left:.0f} s left"
            print(f"{what}: {count} of {total}, {now - started:.0f} s{time_left}", file=sys.stderr, flush=True)
