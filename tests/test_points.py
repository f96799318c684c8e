"""The small network of points learns the closed form."""

import torch

from memlib.fields.mixtures import GaussianMixture
from memlib.training import points


def test_it_learns_the_noise_prediction_of_a_mixture() -> None:
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.5, -0.5]]), 0.2 * torch.eye(2).expand(2, 2, 2)
    )
    sample = mixture.sample(5000, torch.Generator().manual_seed(0))
    network, again = (points.fit(sample, 0.1, 3.0, 600, 1, 64, 512) for _ in range(2))
    fresh = mixture.sample(500, torch.Generator().manual_seed(2))
    for sigma in (0.2, 1.0):
        noisy = fresh + sigma * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(3))
        truth = mixture(noisy, sigma)
        assert (network(noisy, sigma) - truth).square().mean() < 0.05 * truth.square().mean()
        assert torch.equal(network(noisy, sigma), again(noisy, sigma))
    levels = torch.linspace(0.1, 3.0, len(fresh))
    singly = torch.cat([network(row[None], float(level)) for row, level in zip(fresh, levels, strict=True)])
    torch.testing.assert_close(network(fresh, levels), singly)
