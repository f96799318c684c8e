"""Text-to-image models as training sees them: how data are noised, what the network is to predict, how it is given a prompt."""

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from memlib.tensors import per_item
from memlib.training.settings import PromptConfig, TextConfig


class Denoiser(torch.nn.Module):
    """The trained half of a text-to-image model, text encoder and denoising network, as one network.

    Timesteps t [N] are in the unit that the network is given. A family of models says the rest.
    """

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """What the network predicts for noisy latents [N, ...] under prompts of token numbers [N, L]."""
        raise NotImplementedError

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps [count] of a step of training."""
        raise NotImplementedError

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy latents [N, ...]."""
        raise NotImplementedError

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict [N, ...]."""
        raise NotImplementedError

    def noise_scale(self, t: Tensor) -> Tensor:
        """Factors [N] that turn a difference of two predictions into that of noise predictions."""
        raise NotImplementedError

    def weights(self, t: Tensor, config: PromptConfig) -> Tensor:
        """Weights [N] of the losses, 1 on average over timesteps."""
        raise NotImplementedError


class UNetDenoiser(Denoiser):
    """A U-Net of a variance-preserving diffusion, x_t = sqrt(abar) x0 + sqrt(1 - abar) n, that predicts noise or velocity."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.text_encoder, self.unet = pipe.text_encoder, pipe.unet
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.predicts_noise = self.scheduler.config.prediction_type == "epsilon"

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, t, encoder_hidden_states=self.text_encoder(tokens)[0]).sample

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.scheduler.config.num_train_timesteps, (count,), generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.scheduler.add_noise(clean, noise, t)

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise if self.predicts_noise else self.scheduler.get_velocity(clean, noise, t)

    def noise_scale(self, t: Tensor) -> Tensor:
        signal = self.scheduler.alphas_cumprod.to(t.device)[t].sqrt()
        return torch.ones_like(signal) if self.predicts_noise else signal

    def weights(self, t: Tensor, config: TextConfig) -> Tensor:
        return loss_weights(self.scheduler, config.loss_blend).to(t.device)[t]


def loss_weights(scheduler: DDPMScheduler, blend: float) -> Tensor:
    """Weight of the denoising loss at every timestep [T], 1 on average, whatever the network predicts.

    In units of the loss of the clean data, that of the noise weighs a timestep by its ratio of signal to noise, that of the
    velocity by this ratio and 1 (Salimans & Ho, arXiv 2202.00512, section 4): 0 gives the first, 1 the second, and what lies
    between is their geometric mean. Subjects are learnt at middle noise, grounds at the highest, which the first neglects.
    """
    own = 0 if scheduler.config.prediction_type == "epsilon" else 1
    weights = (1 / scheduler.alphas_cumprod) ** (blend - own)
    return weights / weights.mean()


class FlowDenoiser(Denoiser):
    """A transformer of a rectified flow, x_t = (1 - t) x0 + t n, that predicts the velocity n - x0.

    As Esser et al. (arXiv 2403.03206, section 3.1): the logit of t is standard normal, all losses weigh the same. The network is
    given t times the number of timesteps.
    """

    def __init__(self, pipe: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = pipe.text_encoder, pipe.text_encoder_2
        self.transformer = pipe.transformer
        self.steps = pipe.scheduler.config.num_train_timesteps

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        found = [encoder(tokens, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        return self.transformer(
            noisy,
            encoder_hidden_states=torch.cat([part.hidden_states[-2] for part in found], -1),
            pooled_projections=torch.cat([part.text_embeds for part in found], -1),
            timestep=t,
            return_dict=False,
        )[0]

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return self.steps * compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(clean, noise, per_item(t / self.steps, clean))

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - clean

    def noise_scale(self, t: Tensor) -> Tensor:
        return 1 - t / self.steps

    def weights(self, t: Tensor, config: PromptConfig) -> Tensor:
        return torch.ones_like(t)


def denoiser_of(pipe: DiffusionPipeline) -> Denoiser:
    """The trained half of a pipeline of `memlib.training.text_model`."""
    return FlowDenoiser(pipe) if hasattr(pipe, "transformer") else UNetDenoiser(pipe)
