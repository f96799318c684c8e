"""Lengths of gradients by each layer, against autograd on the network itself."""

import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.fields.unet import UNetField
from memlib.tensors import generators, normal

LEVELS = [0.2, 1.0]


def test_the_lengths_are_those_of_the_mean_losses_gradient(generator: torch.Generator) -> None:
    field = UNetField(small_unet().requires_grad_(False), scheduler())
    x = torch.rand(2, 3, 8, 8, generator=generator)
    items = Items("ab", 3, x)
    found = {scores.reading["layer"]: scores for scores in find("gsa").score(field, items, sigmas=LEVELS)}
    unet = small_unet()
    assert found.keys() == {*dict(unet.named_parameters()), "all"}
    assert {scores.evaluations for scores in found.values()} == {4}
    assert not any(weight.requires_grad or weight.grad is not None for weight in field.unet.parameters())
    levels = torch.tensor(LEVELS)
    signal = (1 + levels.square()).rsqrt()
    for row, seed in enumerate(items.seeds):
        noise = normal(generators([seed]), 2, x[:1])[:, 0]
        unet.zero_grad()
        for s, sigma, n in zip(signal, levels, noise, strict=True):
            t = field.timestep(sigma[None].double())
            (unet(s * (x[row] + sigma * n)[None], t).sample - n).square().mean().div(2).backward()
        squared = 0.0
        for name, weight in unet.named_parameters():
            assert -float(found[name].value[row]) == pytest.approx(float(weight.grad.norm()), rel=1e-3, abs=1e-6)
            squared += float(weight.grad.square().sum())
        assert -float(found["all"].value[row]) == pytest.approx(squared**0.5, rel=1e-3)


def test_a_trained_picture_has_a_short_gradient(generator: torch.Generator) -> None:
    unet = small_unet(attention=False)
    field = UNetField(unet, scheduler())
    seen, unseen = (torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    sigmas = torch.tensor([0.5] * 8)
    for _ in range(60):
        noise = torch.randn(8, 3, 8, 8, generator=generator)
        loss = (field(seen + 0.5 * noise, sigmas) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    *_, whole = find("gsa").score(field, Items("ab", 0, torch.cat([seen, unseen])), sigmas=[0.5] * 4)
    assert whole.reading == {"layer": "all"}
    assert whole.value[0] > whole.value[1]


def test_each_picture_has_its_own_prompt() -> None:
    pipe = small_pipeline()
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=8)
    items = Items("ab", 0, torch.rand(2, 3, 16, 16), ["a red apple", "the whale"])
    without, prompted, swapped = (
        find("gsa").score(field, each, sigmas=[1.0], prompt=prompt)[-1].value
        for each, prompt in ((items, False), (items, True), (Items("ab", 0, items.pictures, ["the whale"] * 2), True))
    )
    assert (without != prompted).all()
    assert torch.isclose(swapped, prompted, rtol=1e-6).tolist() == [False, True]
