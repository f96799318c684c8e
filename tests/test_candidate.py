"""A user's detector on the bench: what is refused, in a sentence that names the item, and one that is judged."""

from pathlib import Path

import pytest
import torch
from test_detectors import items_for, pixel_field, text_field

from memlib.candidate import check, read_candidates
from memlib.detectors.api import Detector, Items, Scores
from memlib.fields.network import NetworkField
from memlib.tensors import generators, normal


def plain(field: NetworkField, items: Items) -> torch.Tensor:
    return field(items.pictures, 0.2).flatten(1).norm(dim=1)


def noisy(field: NetworkField, items: Items) -> torch.Tensor:
    noise = normal(generators(items.seeds), 1, items.pictures)[0]
    return field(items.pictures + noise, 0.2).flatten(1).mean(1)


def changing(field: NetworkField, items: Items) -> torch.Tensor:
    with torch.no_grad():
        next(field.network.parameters()).add_(1e-3)
    return plain(field, items)


def hooking(field: NetworkField, items: Items) -> torch.Tensor:
    field.network.register_forward_hook(lambda *_: None)
    return plain(field, items)


def with_nan(field: NetworkField, items: Items) -> torch.Tensor:
    return torch.where(torch.tensor([name == "item 2" for name in items.ids]), torch.nan, plain(field, items))


def given(function) -> Detector:
    return Detector("mine", {"model", "picture"}, [{}], lambda field, items: Scores(function(field, items), 1))


REFUSED = [
    (
        given(lambda field, items: plain(field, items)[1:]),
        r"mine gave scores of the shape \[5\] for 6 items, the first of which is 'item 0'; it must give one an ",
    ),
    (given(with_nan), "mine gave nan for the item 'item 2' at ; a score must be finite"),
    (given(changing), "mine changes the model: its weights, mode or hooks are others after 'item 0' was scored"),
    (given(hooking), "mine changes the model"),
    (
        given(lambda field, items: plain(field, items) - plain(field, items).mean()),
        "mine gives the item 'item .' .* beside 5 others and .* beside 3; a score must depend on its item alone",
    ),
    (
        given(lambda field, items: plain(field, items) + torch.randn(len(items.ids))),
        "mine gives the item .* its random numbers on items.seeds",
    ),
    (
        given(lambda field, items: plain(field, items)[:, None].T.repeat(9, 1)),
        r"mine gave scores of the shape \[9, 6\]",
    ),
    (
        Detector("mine", {"model", "picture"}, [{}], plain),
        "mine gave Tensor for 6 items, the first of which is 'item 0'; it must give Scores",
    ),
    (given(lambda field, items: plain(field, items).detach().numpy()), "mine gave Scores of a ndarray"),
    (
        given(lambda field, items: field.nothing),
        "mine failed with AttributeError: .*nothing.* \\(test_candidate.py, line",
    ),
]


@pytest.mark.parametrize(("detector", "message"), REFUSED, ids=[message[5:24] for _, message in REFUSED])
def test_what_would_make_a_comparison_worthless_is_refused(detector: Detector, message: str) -> None:
    field = pixel_field()
    with pytest.raises(ValueError, match=message):
        check(detector, field, items_for(field, 6))


@pytest.mark.parametrize("function", [plain, noisy])
def test_a_detector_of_its_item_alone_passes(function) -> None:
    field = pixel_field()
    assert check(given(function), field, items_for(field, 6)) > 0


def test_detectors_of_prompts_are_checked_too() -> None:
    field = text_field()
    detector = Detector(
        "mine",
        {"model", "prompt"},
        [{}],
        lambda field, items: Scores(torch.tensor([float(len(p)) for p in items.prompts]), 0),
    )
    check(detector, field, items_for(field, 6))


FILE = """
from memlib.detectors.api import Detector, Scores

def score(field, items, *, sigma):
    return Scores(-field(items.pictures, sigma).flatten(1).norm(dim=1), 1)

MINE = Detector({name!r}, {{"model", "picture"}}, [{{"sigma": 0.2}}], score)
"""


def test_detectors_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(name="mine") + "AGAIN = MINE\n")
    assert [detector.name for detector in read_candidates(path)] == ["mine"]
    for content, message in (
        (
            FILE.format(name="loss"),
            "defines no Detector of its own, only loss, which the bench has; give yours another name",
        ),
        ("x = 1", "mine.py defines no Detector of its own"),
        (
            FILE.format(name="mine") + "OTHER = Detector(**{**vars(MINE), 'settings': ({},)})\n",
            "defines two Detectors of the name 'mine'; give each its own",
        ),
        ("x = (", "mine.py cannot be run: SyntaxError"),
        ("import nothing_of_that_name", "mine.py cannot be run: ModuleNotFoundError"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_candidates(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_candidates(tmp_path / "other.py")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="is no file of Python; its name must end in .py"):
        read_candidates(tmp_path / "mine.txt")


@pytest.mark.parametrize("page", ["README.md", "book/add_yours.md"])
def test_the_example_of_a_page_runs_on_pixels_and_on_latents(page: str, tmp_path: Path) -> None:
    blocks = (Path(__file__).parent.parent / page).read_text().split("```python\n")[1:]
    path = tmp_path / "my_detector.py"
    path.write_text(next(code for code in (block.split("```")[0] for block in blocks) if "Detector(" in code))
    (detector,) = read_candidates(path)
    for field in (pixel_field(), text_field()):
        assert check(detector, field, items_for(field, 6)) > 0
