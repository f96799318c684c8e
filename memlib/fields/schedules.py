"""Noise levels of a network: what the timesteps of its scheduler are in variance-exploding coordinates.

A network is given x_t = signal * x0 + noise * n at a timestep in the scheduler's unit; sigma = noise / signal, y = x_t / signal.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memlib.fields.parameterisation import check_prediction

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SCHEDULERS = "those with alphas_cumprod, such as DDPMScheduler, DDIMScheduler, PNDMScheduler and EulerDiscreteScheduler"
FLOWS = "FlowMatchEulerDiscreteScheduler, and those with use_flow_sigmas and the prediction type flow_prediction"


class DiscreteSchedule:
    """Steps of a variance-preserving schedule, sigma_t = sqrt((1 - abar_t) / abar_t); t is interpolated in log sigma.

    sigmas: those of all timesteps where something of the data is left, rising, float64 on the processor. Raises ValueError for a
    schedule that is not discrete and an unknown prediction type.
    """

    def __init__(self, scheduler: "SchedulerMixin") -> None:
        self.scheduler = check_scheduler(scheduler)
        self.prediction_type = check_prediction(scheduler.config.get("prediction_type", "epsilon"))
        levels = schedule_sigmas(scheduler)
        self.sigmas = levels[levels.isfinite()]

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of each noise level [N], float32; raises ValueError for one outside of the schedule."""
        log_sigmas = self.sigmas.log()
        if sigma.device.type != "cpu":
            log_sigmas = log_sigmas.to(sigma.device, torch.float32)
        log_sigma = sigma.to(log_sigmas.dtype).log()
        _check_levels(sigma, log_sigma, log_sigmas)
        upper = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(log_sigmas) - 1)
        below, above = log_sigmas[upper - 1], log_sigmas[upper]
        return ((upper - 1) + ((log_sigma - below) / (above - below)).clamp(0, 1)).float()

    def signal(self, sigma: Tensor) -> Tensor:
        """Share of the data in x_t at noise levels, sqrt(abar)."""
        return (1 + sigma**2).rsqrt()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at timesteps, in float64; also where nothing of the data is left."""
        abar = abar_at(self.scheduler, t)
        return abar.sqrt(), (1 - abar).sqrt()


class FlowSchedule:
    """Rectified flow, x_t = (1 - t) x0 + t n and sigma = t / (1 - t), with timesteps t T for T = `num_train_timesteps`.

    Sampling starts at t = 1, pure noise, where sigma is infinite and x_t has no y: there only `at` goes. The largest of `sigmas`
    is that of the timestep before, T - 1 (999), and the smallest that of the first, 1 / (T - 1). Raises ValueError for a
    scheduler of another kind.
    """

    prediction_type = "flow"

    def __init__(self, scheduler: "SchedulerMixin") -> None:
        config = scheduler.config
        flow = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
        if not (flow or type(scheduler).__name__.startswith("FlowMatch")) or config.get("invert_sigmas"):
            raise ValueError(f"{type(scheduler).__name__} is not set to a rectified flow; supported are {FLOWS}")
        self.steps = config.num_train_timesteps
        t = torch.arange(1, self.steps, dtype=torch.float64)
        self.sigmas = t / (self.steps - t)

    def timestep(self, sigma: Tensor) -> Tensor:
        """T t of each noise level [N], float32; raises ValueError for one outside of `sigmas`."""
        wide = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        _check_levels(sigma, wide.log(), self.sigmas.log())
        return (self.steps * wide / (1 + wide)).float()

    def signal(self, sigma: Tensor) -> Tensor:
        """Share of the data in x_t at noise levels, 1 - t."""
        return 1 / (1 + sigma)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at timesteps, in float64; also where nothing of the data is left."""
        noise = t.double() / self.steps
        return 1 - noise, noise


Schedule = DiscreteSchedule | FlowSchedule


def _check_levels(sigma: Tensor, log_sigma: Tensor, log_sigmas: Tensor, tolerance: float = 1e-4) -> None:
    """Raise ValueError for noise levels outside of a schedule; those on a GPU are not looked at, nothing waits for it."""
    if sigma.device.type != "cpu":
        return
    if not ((log_sigma >= log_sigmas[0] - tolerance) & (log_sigma <= log_sigmas[-1] + tolerance)).all():
        raise ValueError(
            f"sigma from {float(sigma.min()):.4g} to {float(sigma.max()):.4g} lies outside of the schedule, "
            f"which goes from {float(log_sigmas[0].exp()):.4g} to {float(log_sigmas[-1].exp()):.4g}"
        )


def check_scheduler(scheduler: "SchedulerMixin") -> "SchedulerMixin":
    """Return a scheduler; raise ValueError unless the network under it was trained at the steps of a discrete schedule."""
    kind = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{kind} has no discrete schedule of noise levels; supported are {SCHEDULERS}")
    if scheduler.config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"the network under this {kind} is told no timestep but a noise level; supported are {SCHEDULERS}"
        )
    return scheduler


def abar_at(scheduler: "SchedulerMixin", t: Tensor) -> Tensor:
    """abar at timesteps, in float64; between two of them, where some samplers go, by interpolation."""
    abar = scheduler.alphas_cumprod.to("cpu", torch.float64)
    low = t.floor().long()
    return torch.lerp(abar[low], abar[(low + 1).clamp_max(len(abar) - 1)], t - low)


def schedule_sigmas(scheduler: "SchedulerMixin") -> Tensor:
    """Noise levels sigma_t [T] of a discrete schedule, in float64, increasing; infinite where nothing of the data is left."""
    abar = scheduler.alphas_cumprod.to("cpu", torch.float64)
    return ((1 - abar) / abar).sqrt()


def timesteps(scheduler: "SchedulerMixin", sampling_steps: int, **given: Any) -> list[float]:
    """The timesteps that a scheduler visits in so many steps, the noisiest first; the scheduler stays as it is.

    given: what a pipeline gives `set_timesteps` beside their number.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sampling_steps, **given)
    return [float(t) for t in scheduler.timesteps]
