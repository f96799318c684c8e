"""What a field remembers: the same bytes, nothing computed twice, bounded, and out of the way where it could be wrong."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detectors import FEWER, PROMPTED, Counted, items_for, pixel_field, text_field
from test_score import PIXEL, TEXT
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors import ALL, find
from memlib.detectors.api import Detector, Scores
from memlib.detectors.derivatives import adjoint_derivative
from memlib.fields import memory
from memlib.fields.memory import counting
from memlib.fields.unet import UNetField
from memlib.score import Table, write_tables

FIELDS = {"pixel": (pixel_field, PIXEL), "text": (text_field, TEXT)}


def tables(kind: str, folder: Path, n: int = 5) -> tuple[object, list[Table]]:
    make, settings = FIELDS[kind]
    field = make()
    items = items_for(field, n)
    return field, [
        Table(items, find(name), [setting], folder / f"{name}.parquet") for name, setting in settings.items()
    ]


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["text", "pixel"])
def test_scores_are_the_same_bytes_with_what_is_shared_and_without(kind: str, tmp_path: Path) -> None:
    made = {}
    for share in (False, True):
        field, asked = tables(kind, tmp_path / str(share))
        made[share] = write_tables(field, asked, batch=4, share=share)
    for table in asked:
        alone, together = (tmp_path / str(share) / table.output.name for share in (False, True))
        assert alone.read_bytes() == together.read_bytes(), table.detector.name
    counts = {share: {path.stem: cost.evaluations for path, cost in costs.items()} for share, costs in made.items()}
    assert all(counts[True][name] <= count for name, count in counts[False].items())
    assert sum(counts[True].values()) < 0.9 * sum(counts[False].values())


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        (("length", {"sigma": 0.2}), ("sima", {"sigma": 0.2, "power": [2, 4]}), 0),
        (("loss", {"sigma": 0.2, "draws": [3]}), ("loss", {"sigma": 0.2, "draws": [1, 2]}), 0),
        (("loss", {"sigma": 0.2, "draws": [3]}), ("loss", {"sigma": 0.2, "draws": [4]}), 1),
        (("loss", {"sigma": 0.2, "draws": [1]}), ("loss", {"sigma": 0.3, "draws": [1]}), 1),
        (("rate", {"sigma": 0.2, "directions": [2]}), ("flipd", {"sigma": 0.2, "directions": [1, 2]}), 0),
        (("rate", {"sigma": 0.2, "directions": [1]}), ("rate", {"sigma": 0.2, "directions": [3]}), 3),
        (("pia", {"sigma": 0.2}), ("pian", {"sigma": 0.2}), 1),
        (("growth", PIXEL["growth"]), ("calibrated_growth", PIXEL["growth"]), 8),
    ],
)
def test_what_two_detectors_ask_is_computed_once(
    first: tuple[str, dict], second: tuple[str, dict], made: int, tmp_path: Path
) -> None:
    """An item's evaluations of the second; of a derivative with further directions, the forward pass is made again."""
    field = pixel_field()
    items = items_for(field, 3)
    asked = [
        Table(items, find(name), [setting], tmp_path / f"{number}.parquet")
        for number, (name, setting) in enumerate((first, second))
    ]
    costs = write_tables(field, asked)
    assert costs[asked[1].output].evaluations == 3 * made


def test_the_first_step_is_made_once_for_all_who_look_at_it(tmp_path: Path) -> None:
    field = text_field()
    items = items_for(field, 3)
    names = ("magnitude", "one_step", "guided_change", "anisotropy")
    asked = [
        Table(
            items,
            find(name),
            [TEXT[name] | ({"noises": [3]} if name == "one_step" else {})],
            tmp_path / f"{name}.parquet",
        )
        for name in names
    ]
    costs = {path.stem: cost.evaluations for path, cost in write_tables(field, asked).items()}
    assert costs == {"magnitude": 3 * 3 + 3, "one_step": 0, "guided_change": 3 * 3, "anisotropy": 3 * 3 + 3}


DEAR = ("sampled_entropy", "calibrated_growth", "axes", "sampled_magnitude")  # computed as others are, in more seconds
ASKED = [name for name in ALL if "model" in find(name).needs]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.ci if name in DEAR else ()) for name in ASKED])
def test_evaluations_are_counted_as_they_are_made(name: str, backward_rows: Counter[str]) -> None:
    field = text_field() if name in PROMPTED else pixel_field()
    items = items_for(field)
    seen = Counted(field, items.reference)
    with counting(field.network, items.reference.network) as count:
        for setting in find(name).settings[:1]:
            find(name).score(field, items, **setting | FEWER.get(name, {}))
    assert count.made == seen.evaluations + backward_rows.total() > 0
    assert not field.network._forward_pre_hooks


class Known(NamedTuple):
    """A field, pictures, and what it predicts of all of them at a level, and where every other one is at twice the level."""

    field: UNetField
    pictures: torch.Tensor
    at: dict[float, torch.Tensor]
    mixed: dict[float, torch.Tensor]


def doubled(sigma: float, rows: list[int]) -> torch.Tensor:
    return torch.tensor([sigma * (1 + row % 2) for row in rows], dtype=torch.float64)


@pytest.fixture(scope="module")
def known() -> Known:
    field = pixel_field().with_rows(4, pad=True)
    x = items_for(field, 4).pictures
    with torch.no_grad():
        at = {sigma: field(x, sigma) for sigma in (0.2, 0.7)}
        mixed = {sigma: field(x, doubled(sigma, [0, 1, 2, 3])) for sigma in at}
    return Known(field, x, at, mixed)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from([0.2, 0.7])), max_size=4)
)
@settings(max_examples=30)
def test_rows_in_any_company_are_those_that_are_computed(known: Known, calls: list[tuple[list[int], float]]) -> None:
    remembering = known.field.remembering()
    with torch.no_grad():
        for rows, sigma in calls:
            assert torch.equal(remembering(known.pictures[rows], sigma), known.at[sigma][rows])
            assert torch.equal(remembering(known.pictures[rows], doubled(sigma, rows)), known.mixed[sigma][rows])


def test_each_row_is_asked_under_its_own_prompt() -> None:
    field = text_field().with_rows(4, pad=True)
    items, remembering = items_for(field, 2), field.remembering()
    cond = field.encode_prompts(items.prompts)
    x = torch.randn(1, *field.shape, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    swapped = {name: value.flip(0) for name, value in cond.items()}
    with torch.no_grad():
        for given_cond in (cond, swapped, field.unconditional(), cond):
            for ask in (lambda f, c: f(x, 0.5, c), lambda f, c: f.data_at(x, 300.0, c)):
                assert torch.equal(ask(remembering, given_cond), ask(field, given_cond))
        assert not torch.equal(field(x, 0.5, cond), field(x, 0.5, swapped))
        assert torch.equal(remembering.with_conditioning(swapped)(x, 0.5), field(x, 0.5, swapped))
    assert remembering.memory.size


def test_what_is_kept_is_bounded_and_safe_from_its_reader() -> None:
    field = pixel_field().with_rows(4, pad=True)
    x = items_for(field, 4).pictures
    remembering = field.remembering()
    row = x[0].nbytes
    remembering.memory.limit = 3 * row
    with torch.no_grad():
        expected = field(x, 0.2)
        found = remembering(x, 0.2)
        assert remembering.memory.size == 3 * row
        kept = remembering.memory._rows.values()
        assert [each.untyped_storage().nbytes() for each in kept] == [row] * 3, "not whole calls"
        found.zero_()
        assert torch.equal(remembering(x, 0.2), expected)
        with counting(field.network) as count:
            field.remembering()(x[[0, 0, 0]], 0.2)
        assert count.made == 1, "an item that is there three times"


def test_a_derivative_of_what_is_remembered_is_the_derivative() -> None:
    field = pixel_field().with_rows(4, pad=True)
    x = items_for(field, 3).pictures
    along = torch.ones_like(x)
    remembering = field.remembering()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        remembering(x, 0.2)
        for function in (
            lambda eps: torch.func.jvp(lambda y: eps(y, 0.2), (x,), (along,))[1],
            lambda eps: torch.func.vjp(lambda y: eps(y, 0.2), x)[1](along)[0],
            lambda eps: adjoint_derivative(eps, x, 0.2)[1](along[None])[0],
        ):
            expected = function(field)
            assert expected.any()
            for _ in range(2):
                assert torch.equal(function(remembering), expected)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(remembering(y, 0.2).sum(), y)
    assert gradient.any()


@pytest.mark.parametrize("what", ["weights", "hook", "processor", "mode", "kernels"])
def test_another_network_or_one_that_is_watched_is_asked_again(what: str) -> None:
    field = pixel_field().with_rows(4, pad=True)
    x = items_for(field, 4).pictures
    remembering, calls = field.remembering(), []
    with torch.no_grad():
        before = remembering(x, 0.2)
        with counting() as count:
            remembering(x, 0.2)
            assert count.made == 0
            match what:
                case "weights":
                    next(field.network.parameters()).add_(0.1)
                case "hook":
                    field.network.mid_block.register_forward_hook(lambda *_: calls.append(None))
                case "processor":
                    attention = next(m for m in field.network.modules() if hasattr(m, "processor"))
                    attention.set_processor(type(attention.processor)())
                case "mode":
                    field.network.train()
            if what == "kernels":
                with sdpa_kernel(SDPBackend.MATH):
                    remembering(x, 0.2)
            else:
                assert torch.equal(remembering(x, 0.2), before) == (what != "weights")
        assert count.made == 4
    assert len(calls) == (what == "hook")


def test_a_batch_forgets_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, keep = [], memory.Memory._keep
    monkeypatch.setattr(memory.Memory, "_keep", lambda self, *given: keep(self, *given) or sizes.append(self.size))
    field = pixel_field()
    items = items_for(field, 4)
    write_tables(field, [Table(items, find("length"), [{"sigma": 0.2}], tmp_path / "length.parquet")], batch=1)
    assert sizes == [items.pictures[0].nbytes] * 4


def test_tables_of_other_items_or_seeds_are_not_mixed_up(tmp_path: Path) -> None:
    field = pixel_field()
    items = items_for(field, 4)
    loss, setting = find("loss"), [{"sigma": 0.2, "draws": [2]}]
    given_items = {"all": items, "seed": replace(items, seed=8), "few": items.rows([1, 3])}
    together = [Table(each, loss, setting, tmp_path / "a" / f"{name}.parquet") for name, each in given_items.items()]
    write_tables(field, together, batch=2)
    for name, each in given_items.items():
        path = tmp_path / "b" / f"{name}.parquet"
        write_tables(field, [Table(each, loss, setting, path)], batch=2, share=False)
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_the_cost_of_a_table_holds_what_a_pipeline_asks_by_itself(tmp_path: Path) -> None:
    field = text_field()
    items = items_for(field, 2)

    def score(field, items) -> Scores:
        field.network(torch.zeros(3, *field.shape), 5, encoder_hidden_states=torch.zeros(3, 8, 32))
        return Scores(torch.zeros(2), 0)

    path = tmp_path / "own.parquet"
    costs = write_tables(field, [Table(items, Detector("own", {"prompt"}, ({},), score), [], path)])
    assert costs[path].evaluations == 3
