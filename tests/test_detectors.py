"""Every detector in the list: what it needs, what it costs, which way it points, and what it refuses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet

from memlib.detectors import ALL, find
from memlib.detectors.api import NEEDS, Items, as_list
from memlib.detectors.text import first_step
from memlib.fields.mixtures import GaussianMixture
from memlib.fields.network import NetworkField
from memlib.fields.unet import UNetField
from memlib.sampling.grids import sigma_grid
from memlib.sampling.pipeline import shared_noise

PROMPTED = [name for name in ALL if "prompt" in find(name).needs]
BLIND = (
    "between_generations",
    "nearest_training",
    *(name for name in ALL if ":" in ALL[name] and "blind" in ALL[name]),
)


def pixel_field(seed: int = 0) -> UNetField:
    return UNetField(small_unet(seed=seed), scheduler(), rows=8)


def text_field(seed: int = 0) -> UNetField:
    pipe = small_pipeline(seed=seed)
    return UNetField(pipe.unet, pipe.scheduler, pipe, rows=8)


def items_for(field: NetworkField, n: int = 2) -> Items:
    """Items of which all is known."""
    generator = torch.Generator().manual_seed(0)
    pictures, training = (torch.rand(k, *field.picture_shape, generator=generator) * 2 - 1 for k in (n, 6))
    return Items(
        [f"item {i}" for i in range(n)],
        3,
        pictures,
        [f"a red apple {i}" for i in range(n)],
        torch.rand(n, 6, *field.picture_shape, generator=generator) * 2 - 1,
        training,
        text_field(1) if field.takes_prompts else pixel_field(1),
        [f"a red apple on a tree {i}" for i in range(6)],
    )


FEWER = {  # evaluations than at the usual settings, of which a count tells as much
    **{name: {"sampling_steps": 10} for name in ("sampled_entropy", "sampled_magnitude")},
    **{name: {"sigma_min": 0.1, "sigma_max": 1.0, "steps": 2} for name in ("growth", "calibrated_growth")},
    "axes": {"steps": [3]},
    "secmi": {"timesteps": [0, 10, 20]},
    "rediffuse": {"steps": 2, "draws": [3]},
    "pfami": {"sigmas": [0.2], "crops": [0.9, 0.8]},
}
READ = ("quantity", "part", "layer")  # names of readings that are those of no setting
SHARED = {  # evaluations a noise of what has no prompt in it, with the backward pass
    **dict.fromkeys(("magnitude", "sail", "guided_change"), 1),
    **dict.fromkeys(("anisotropy", "gradient_difference"), 2),
}


class Counted:
    """Rows of the calls of networks, twice in forward mode, and of backward passes to their weights."""

    def __init__(self, *fields: NetworkField) -> None:
        self.evaluations = 0
        for field in fields:
            field.network.register_forward_hook(self.count)

    def count(self, _: torch.nn.Module, __: tuple, output: tuple) -> None:
        rows = len(output[0])
        self.evaluations += rows * (2 if torch.autograd.forward_ad._current_level >= 0 else 1)
        if output[0].requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output[0]):
            output[0].register_hook(partial(self.add, rows))

    def add(self, rows: int, _: torch.Tensor) -> None:
        self.evaluations += rows


@pytest.mark.parametrize("name", ALL)
def test_every_detector_costs_what_it_says(name: str, backward_rows: Counter[str]) -> None:
    detector, field = find(name), text_field() if name in PROMPTED else pixel_field()
    assert detector.name == name
    assert set(detector.needs) <= set(NEEDS)
    assert ("model" in detector.needs) == (name not in BLIND)
    items = items_for(field)
    for setting in detector.settings:
        detector.check(field, items, setting)
    check_costs(name, [setting | FEWER.get(name, {}) for setting in detector.settings], field, items, backward_rows)


def check_costs(
    name: str, settings: Sequence[dict], field: NetworkField, items: Items, backward_rows: Counter[str]
) -> None:
    """Two items at some settings take the evaluations that the scores name, and are told apart."""
    detector, expected = find(name), 0
    seen = Counted(field, *([items.reference] if "reference" in detector.needs else []))
    for setting in settings:
        detector.check(field, items, setting)
        found = as_list(detector.score(field, items, **setting))
        names = [tuple(sorted(scores.reading.items())) for scores in found]
        assert len(set(names)) == len(names), "readings are told apart"
        for scores in found:
            assert scores.value.shape == (2,)
            assert scores.value.isfinite().all()
            assert not scores.reading.keys() - {*setting, "rate_at", "noise", "step", "sigma", *READ}
        dearest: Counter[object] = Counter()  # of all readings of a noise and part, the dearest has cost what all have
        for scores in found:
            run = scores.reading.get("noise"), scores.reading.get("part")
            dearest[run] = max(dearest[run], scores.evaluations)
        expected += 2 * dearest.total() + 4 * SHARED.get(name, 0)
        assert seen.evaluations + backward_rows.total() == expected


def test_a_batch_of_prompts_costs_no_calls_filled_up_for_the_empty_one() -> None:
    field = text_field().with_rows(8, pad=True)
    items, seen = items_for(field, 5), Counted(field)
    find("magnitude").score(field, items, noises=3, sampling_steps=10)
    assert seen.evaluations == 2 * 8 + 3


READINGS = [
    ("sima", {"sigma": 0.2}, {"power": [2, 4]}),
    ("rediffuse", {"sigma": 0.5, "steps": 2}, {"draws": [1, 3]}),
    ("loss", {"sigma": 0.2}, {"draws": [1, 3]}),
    ("calibrated_loss", {"sigma": 0.2}, {"draws": [1, 2]}),
    ("rate", {"sigma": 0.2}, {"directions": [1, 2]}),
    ("edges", {"sigma_min": 0.2, "ratio": 1.5}, {"axes": [1, 2], "steps": [1, 3]}),
    ("axes", {"timesteps": 3}, {"axes": [2], "steps": [1, 3]}),
    ("flux", {"sigma": 0.2, "directions": 4}, {"p": [1.0, 3.0]}),
    ("derivatives", {"sigma": 0.2, "directions": 1}, {"p": [1.0, 2.0]}),
    ("between_generations", {}, {"generations": [2, 4]}),
    ("nearest_training", {}, {"generations": [1, 3]}),
]


@pytest.mark.parametrize(("name", "setting", "readings"), READINGS, ids=[name for name, *_ in READINGS])
def test_a_reading_is_what_a_run_of_its_own_gives_and_costs(name: str, setting: dict, readings: dict) -> None:
    detector, field = find(name), pixel_field()
    items = items_for(field)
    found = as_list(detector.score(field, items, **setting, **readings))
    assert len(found) == torch.tensor([len(values) for values in readings.values()]).prod()
    for scores in found:
        single = {key: [value] for key, value in scores.reading.items()}
        assert single.keys() == readings.keys()
        if "timesteps" in setting:
            setting = {"timesteps": scores.reading["steps"]}
        (alone,) = as_list(detector.score(field, items, **setting, **single))
        torch.testing.assert_close(scores.value, alone.value, rtol=1e-4, atol=1e-4)
        assert scores.evaluations == alone.evaluations


def test_the_rate_of_growth_at_every_level_is_read_beside_it() -> None:
    field = pixel_field()
    setting = {"sigma_min": 0.1, "sigma_max": 0.4, "steps": 2, "directions": 1}
    whole, *rates = find("growth").score(field, items_for(field), **setting)
    assert [scores.reading for scores in rates] == [{"rate_at": sigma} for sigma in (0.1, 0.2, 0.4)]
    assert [scores.evaluations for scores in rates] == [2, 4, 6]
    log2 = torch.tensor(2.0).log()
    assert whole.evaluations == 2 * 2 + 3 * 2
    first, middle, last = (scores.value for scores in rates)
    torch.testing.assert_close(whole.value, log2 * (first / 2 + middle + last / 2), rtol=1e-4, atol=1e-4)
    (alone,) = find("rate").score(field, items_for(field), sigma=0.1, directions=[1])
    torch.testing.assert_close(alone.value, first, rtol=1e-4, atol=1e-4)


def test_a_noise_of_the_magnitude_is_a_reading() -> None:
    field = text_field()
    items = items_for(field)
    found = find("magnitude").score(field, items, noises=3)
    assert [scores.reading for scores in found] == [{"noise": 0}, {"noise": 1}, {"noise": 2}]
    expected = first_step(field, items.prompts, shared_noise(field.shape, 3, items.seed))
    torch.testing.assert_close(torch.stack([scores.value for scores in found], 1), expected)
    sampled = find("sampled_magnitude").score(field, items, noises=2, guidance=3.0, sampling_steps=50, steps=2)
    assert [scores.reading["step"] for scores in sampled] == [0, 1, 0, 1]
    assert [scores.evaluations for scores in sampled] == [2, 4, 2, 4]
    torch.testing.assert_close(sampled[2].value, found[1].value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *("growth", "flux", "loss", "length", "secmi", "pia", "edges", "rate", "calibrated_loss"),
        *("sima", "flipd", "rediffuse", "pfami"),
    ],
)
def test_a_prompt_changes_what_a_text_to_image_model_says_of_a_picture(name: str) -> None:
    field = text_field()
    items, detector = items_for(field), find(name)
    setting = detector.settings[0] | FEWER.get(name, {})
    detector.check(field, items, setting | {"prompt": True})
    without, prompted, other = (
        as_list(detector.score(field, given, **setting, prompt=prompt))[0].value
        for given, prompt in (
            (items, False),
            (items, True),
            (replace(items, prompts=["the whale", items.prompts[1]]), True),
        )
    )
    assert (without != prompted).all()
    assert torch.isclose(other, prompted, rtol=1e-5).tolist() == [False, True], "each item has its own prompt"


class ClosedField:
    """A mixture of pictures [1, 4, 4] as a field."""

    device, shape, picture_shape = torch.device("cpu"), torch.Size([1, 4, 4]), torch.Size([1, 4, 4])
    sigmas = sigma_grid(0.02, 2.0, 200, float("inf"))
    sigma_min, sigma_max, takes_prompts = 0.02, 2.0, False

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    def __call__(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.mixture(y.flatten(1), sigma).reshape(y.shape)

    def to_latents(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures

    to_pictures = to_latents


def test_every_detector_points_at_what_is_memorised() -> None:
    """Six narrow peaks in a wide distribution: pictures at their tops against pictures of the rest."""
    generator = torch.Generator().manual_seed(0)
    tops, rest = (torch.randn(6, 16, generator=generator) for _ in range(2))
    wide = torch.eye(16)[None]
    narrow = GaussianMixture(
        torch.full((7,), 1 / 7), torch.cat([tops, torch.zeros(1, 16)]), torch.cat([0.01 * wide] * 6 + [wide])
    )
    field, control = ClosedField(narrow), ClosedField(GaussianMixture(torch.ones(1), torch.zeros(1, 16), wide))
    pictures = torch.cat([tops, rest]).reshape(12, 1, 4, 4)
    generations = pictures[:, None] + torch.tensor([0.01] * 6 + [1.0] * 6)[:, None, None, None, None] * torch.randn(
        12, 4, 1, 4, 4, generator=generator
    )
    plain = torch.cat([torch.zeros(6, 1, 4, 4), pictures[6:].clamp(-1, 1)])
    prompts = ["a long prompt of seven words indeed"] * 6 + ["two words"] * 6
    captions = ["two words", "words", "two"]
    items = Items(
        [str(i) for i in range(12)], 0, pictures, prompts, generations, pictures[:6] + 0.01, control, captions
    )
    for name in ALL:
        if name in ("gsa", "looks") or {"model", "prompt"} <= set(find(name).needs):
            continue  # they ask a network: see test_text, test_first_step, test_attention, test_gradients and test_denoising;
            # or have no direction
        given = replace(items, pictures=plain) if name in ("png_size", "variation", "flat_share") else items
        for setting in find(name).settings:
            for scores in as_list(find(name).score(field, given, **setting)):
                level = setting.get("sigma", 0.2)  # at higher noise the peaks are not seen, nor at little by few draws
                if scores.reading.get("rate_at", 0) < 1 and 0.1 <= level < 1:
                    assert scores.value[:6].min() > scores.value[6:].max(), (name, scores.reading)


def test_a_calibrated_score_is_the_difference_at_the_same_noise() -> None:
    field = pixel_field()
    items = items_for(field)
    same = replace(items, reference=field)
    for name in ("calibrated_loss", "calibrated_growth"):
        setting = find(name).settings[0] | ({"steps": 1, "sigma_max": 1.0} if name == "calibrated_growth" else {})
        plain = find(name.removeprefix("calibrated_"))
        found = as_list(find(name).score(field, items, **setting))
        pair = [as_list(plain.score(each, items, **setting)) for each in (field, items.reference)]
        for scores, here, there in zip(found, *pair, strict=True):
            torch.testing.assert_close(scores.value, here.value - there.value)
            assert scores.evaluations == here.evaluations + there.evaluations
        assert not any(scores.value.any() for scores in as_list(find(name).score(field, same, **setting)))


def test_what_is_not_given_is_asked_for() -> None:
    field = pixel_field()
    items = items_for(field)
    for name, given, model, message in (
        ("loss", replace(items, pictures=None), field, "the detector loss needs pictures: an image set or a folder"),
        ("loss", items, None, "the detector loss needs a model; nothing of the kind is given"),
        (
            "magnitude",
            items,
            field,
            "needs prompts: a prompt file, or pictures with captions, and a text-to-image model; this model takes no prompts",
        ),
        ("magnitude", replace(items, prompts=None), field, "a text-to-image model; nothing of the kind is given"),
        ("prompt_length", replace(items, prompts=None), None, "prompt_length needs prompts"),
        ("between_generations", replace(items, samples=None), field, "needs samples of each prompt"),
        ("nearest_picture", replace(items, training=None), None, "needs the training pictures"),
        (
            "rarest_word",
            replace(items, captions=None),
            None,
            "the detector rarest_word needs training pictures with captions",
        ),
        ("clid", replace(items, prompts=None), text_field(), "the detector clid needs prompts"),
        ("calibrated_loss", replace(items, reference=None), field, "needs a reference model that was trained without"),
    ):
        with pytest.raises(ValueError, match=message):
            find(name).check(model, given, find(name).settings[0])


def test_settings_that_cannot_be_are_refused() -> None:
    field, text = pixel_field(), text_field()
    items = items_for(field)
    for name, setting, message in (
        ("loss", {"sigme": 0.2}, "the detector loss has no setting 'sigme'; did you mean 'sigma'?"),
        ("loss", {"sigma": 0.2}, "a setting of the detector loss lacks 'draws'; it takes sigma, draws, prompt"),
        ("loss", {"sigma": "x", "draws": [1]}, "the detector loss: sigma is 'x'; it must be of the kind float"),
        ("loss", {"sigma": float("nan"), "draws": [1]}, "sigma is nan; it must be of the kind float"),
        ("loss", {"sigma": 0.2, "draws": 4}, r"draws is 4; it must be of the kind list\[int\]"),
        ("loss", {"sigma": 0.2, "draws": []}, r"draws is \[\]"),
        ("loss", {"sigma": 0.2, "draws": [-1]}, r"draws is \[-1\]"),
        ("loss", {"sigma": 0.2, "draws": [True]}, r"draws is \[True\]"),
        (
            "loss",
            {"sigma": 0.2, "draws": [0, 2]},
            r"draws is \[0, 2\]; it must be of the kind list\[int\], at least 1$",
        ),
        ("rate", {"sigma": 0.2, "directions": [0, 2]}, r"directions is \[0, 2\]; .*, at least 1$"),
        ("edges", {"sigma_min": 0.2, "axes": [0, 1], "steps": [1]}, r"axes is \[0, 1\]; .*, at least 1$"),
        ("magnitude", {"noises": 0}, "noises is 0; it must be of the kind int, at least 1$"),
        (
            "magnitude",
            {"noises": 1, "sampling_steps": 0},
            "sampling_steps is 0; it must be of the kind int, at least 1$",
        ),
        ("sampled_magnitude", {"noises": 1, "guidance": 2.0, "steps": 0}, r"steps is 0; .*, at least 1$"),
        ("nearest_training", {"generations": [0]}, r"generations is \[0\]"),
        ("one_step", {"noises": [4, 1]}, r"noises is \[4, 1\]; .*, at least 2$"),
        ("guided_change", {"noises": 1, "sampling_steps": 1}, r"sampling_steps is 1; .*, at least 2$"),
        ("gsa", {"sigmas": [0.2, 1e-3]}, "the detector gsa: sigmas is 0.001, outside of the schedule of the model"),
        ("sima", {"sigma": 0.2, "power": [0]}, r"power is \[0\]; .*, at least 1$"),
        ("secmi", {"sigma": 0.2, "ratio": 1}, r"ratio is 1; .*, above 1$"),
        ("secmi", {"timesteps": [-1, 10]}, r"timesteps is \[-1, 10\]; .*, at least 0$"),
        ("secmi", {"sigma": 0.2, "ratio": 2.0, "below": -1}, r"below is -1; it must be of the kind int, at least 0$"),
        ("growth", {"directions": 1, "sigma_min": 0.2, "ratio": 0.5}, "ratio is 0.5; .*, above 1$"),
        ("length", {"sigma": 0}, "sigma is 0; it must be of the kind float, above 0$"),
        ("pia", {"sigma": -0.1}, "sigma is -0.1; it must be of the kind float, above 0$"),
        (
            "length",
            {"sigma": 1e-3},
            r"sigma is 0.001, outside of the schedule of the model, which goes from 0.01 to 157.4",
        ),
        (
            "growth",
            {"directions": 1, "sigma_min": 0.2, "sigma_max": 1e4},
            "sigma_max is 10000, outside of the schedule",
        ),
        ("growth", {"directions": 2, "method": "rk4"}, "method is 'rk4'; it must be of the kind Literal"),
        ("edges", {"axes": [1], "steps": [1], "estimator": "trace"}, "estimator is 'trace'"),
        ("loss", {"sigma": 0.2, "draws": [1], "prompt": True}, "the detector loss with prompt: true needs prompts"),
    ):
        given = text if name in PROMPTED else field
        with pytest.raises(ValueError, match=message):
            find(name).check(given, items, setting)
    find("secmi").check(field, items, {"sigma": field.sigma_min, "ratio": 1.01, "below": 0, "timesteps": [0]})
    find("secmi").check(field, items, {"timesteps": None, "sigma": field.sigma_max, "ratio": None})
    find("growth").check(field, items, {"directions": 2, "sigma_min": 1, "sigma_max": None, "method": "euler"})
    for name, setting, message in (
        ("edges", {"timesteps": 2, "axes": [1], "steps": [3]}, r"the first \[3\] of 2 steps"),
        ("edges", {"timesteps": 1000, "axes": [1], "steps": [3]}, "no timestep 1000; the model's schedule goes to 999"),
        ("secmi", {"sigma": 0.2}, "names timesteps, or sigma and ratio"),
        ("secmi", {"timesteps": [0, 1000]}, "there is no timestep 1000; the model's schedule goes to 999"),
        ("secmi", {"sigma": 100.0, "ratio": 2.0}, "outside of the schedule"),
        ("between_generations", {"generations": [2, 7]}, r"the first \[2, 7\] generations of a prompt .* there are 6"),
    ):
        find(name).check(field, items, setting)
        with pytest.raises(ValueError, match=message):
            find(name).score(field, items, **setting)
    for name, setting, message in (  # called without a check
        ("loss", {"sigma": 0.2, "draws": [0, 2]}, "a denoising loss needs at least one draw; got 0"),
        ("rate", {"sigma": 0.2, "directions": [0, 2]}, "a divergence needs at least one direction; got 0"),
        (
            "edges",
            {"sigma_min": 0.2, "axes": [0, 1], "steps": [1]},
            r"over the first \[1\] of 1 steps and of \[0, 1\] axes",
        ),
        ("nearest_training", {"generations": [0]}, r"the first \[0\] generations"),
        ("growth", {"directions": 1, "sigma_min": 0.2, "sigma_max": 1e4}, "outside of the schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            find(name).score(field, items, **setting)


def test_an_unknown_detector_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="there is no detector 'los'; did you mean 'loss'\\? known: growth, axes"):
        find("los")
