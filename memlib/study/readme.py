"""What a run can change in README.md, the answer and the claims: `python -m memlib.study.readme` writes it between markers."""

from collections.abc import Mapping
from pathlib import Path

from memlib.files import atomic_write, read_json
from memlib.study import front
from memlib.study.claims import FOUND, findings
from memlib.study.stages import reporting_errors

README = Path("README.md")


def markers(part: str) -> tuple[str, str]:
    """The lines before and after a part."""
    return f"<!-- {part}, written by `python -m memlib.study.readme` -->", f"<!-- end of {part} -->"


def written() -> dict[str, str]:
    """What stands in each part, from the results that are there."""
    return {"answer": front.parts()["answer"].strip(), "verdicts": findings(read_json(FOUND))}


def between_markers(text: str, part: str, content: str) -> str:
    """A text with a part replaced; raises ValueError where its two markers are not there, once each and in order."""
    begin, end = markers(part)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the part {part!r} of {README} goes between the lines {begin!r} and {end!r}, once each")
    return f"{text.split(begin)[0]}{begin}\n{content}\n{end}{text.split(end)[1]}"


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A text with some parts replaced."""
    for part, content in parts.items():
        text = between_markers(text, part, content)
    return text


def main() -> None:
    """Fill the parts of README.md."""
    text = filled(README.read_text(), written())
    with atomic_write(README) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    with reporting_errors("readme"):
        main()
