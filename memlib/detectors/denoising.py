"""Plain detectors that any of the papers' methods has to beat. Larger scores mean more memorised."""

import torch
from torch import Tensor

from memlib.data import check_images
from memlib.models import NoisePredictor
from memlib.ode import integrate, solver_step


@torch.no_grad()
def denoising_loss(eps: NoisePredictor, x: Tensor, sigma: float, draws: int, generator: torch.Generator) -> Tensor:
    """Minus the mean squared error of the noise prediction at one noise level [N], over `draws` noises an image.

    The loss that training minimises (Ho et al., arXiv 2006.11239, eq. 14), used as a membership score by Matsumoto et al.
    (arXiv 2302.03262). `draws` network evaluations an image.
    """
    check_images(x)
    noise = torch.randn(draws, *x.shape, generator=generator).to(x)
    predicted = eps((x + sigma * noise).flatten(0, 1), sigma).reshape(noise.shape)
    return -(predicted - noise).square().flatten(2).mean((0, 2))


@torch.no_grad()
def secmi(eps: NoisePredictor, x: Tensor, sigmas: Tensor) -> Tensor:
    """Minus SecMI's t-error [N]: how far one step of the deterministic sampler and one back miss the starting point.

    Duan et al. (arXiv 2302.01316, eq. 9). The image x [N, C, H, W] is carried up through the levels `sigmas` [S + 1] by Euler
    steps, which are those of DDIM; the error is that of the last of them undone by a step back. S + 1 network evaluations.
    """
    check_images(x)
    if len(sigmas) < 2:
        raise ValueError("the t-error takes a step up and one back; give at least two noise levels")
    *_, here, there = sigmas.sort().values.tolist()
    start = integrate(eps, x, sigmas.sort().values[:-1], "euler")
    end = solver_step(eps, start, here, there, "euler")
    back = solver_step(eps, end, there, here, "euler")
    return -(back - start).square().flatten(1).sum(1)


@torch.no_grad()
def pia(eps: NoisePredictor, x: Tensor, sigma: float, sigma_min: float) -> Tensor:
    """Minus the proximal initialisation error [N]: how far (L4 norm) the noise found at `sigma_min` is not found at `sigma`.

    Kong et al. (arXiv 2305.18355, eq. 12): the noise predicted at the image itself x [N, C, H, W] is added to it at the
    larger level, and predicted again there. Two network evaluations.
    """
    check_images(x)
    noise = eps(x, sigma_min)
    return -(eps(x + sigma * noise, sigma) - noise).flatten(1).norm(p=4, dim=1)


def between_generations(samples: Tensor, tiles: int = 4) -> Tensor:
    """Minus the mean tiled distance [N] between the generations of a prompt: pictures [N, n, C, H, W], n at least 2.

    The distance of two pictures is the largest root mean square over the tiles that they are cut into, tiles x tiles (Carlini
    et al., arXiv 2301.13188, section 4.2), so that equal grounds do not make different pictures alike.
    """
    n = samples.shape[1]
    if n < 2:
        raise ValueError(f"generations are compared with one another; there is {n}")
    size = samples.shape[-1] // tiles
    cut = (
        samples.unfold(3, size, size).unfold(4, size, size).movedim(2, 4).flatten(4).flatten(2, 3)
    )  # [N, n, tiles^2, ...]
    first, second = torch.triu_indices(n, n, 1)
    return -(cut[:, first] - cut[:, second]).square().mean(3).sqrt().amax(2).mean(1)
