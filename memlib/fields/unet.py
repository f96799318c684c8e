"""A diffusers U-Net, with prompts or without, as a field."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memlib.fields import Conditioning
from memlib.fields.network import ROWS, NetworkField
from memlib.fields.schedules import DiscreteSchedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

ADDED = ("text_embeds", "time_ids")  # conditions that Stable Diffusion XL takes in a dictionary of their own


class UNetField(NetworkField):
    """Noise prediction of a diffusers U-Net trained under a discrete schedule (see `NetworkField`).

    Raises ValueError for a schedule that is not discrete and an unknown prediction type.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: "SchedulerMixin",
        pipe: "DiffusionPipeline | None" = None,
        rows: int = ROWS,
        pad: bool = False,
    ) -> None:
        side = unet.config.sample_size
        shape = [unet.config.in_channels, *((side, side) if isinstance(side, int) else side)]
        super().__init__(unet, scheduler, DiscreteSchedule(scheduler), pipe, shape, rows, pad)

    @property
    def unet(self) -> torch.nn.Module:
        """The network."""
        return self.network

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """What the network gives for x_t [N, ...] at timesteps [N], in its own precision."""
        added = {name: cond[name] for name in ADDED if name in cond}
        inputs = {name: value for name, value in cond.items() if name not in ADDED}
        if added:
            inputs["added_cond_kwargs"] = added
        return self.network(x_t, t, return_dict=False, **inputs)[0]

    def _encoded(self, prompts: list[str]) -> Conditioning:
        found = self.pipe.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        cond = {"encoder_hidden_states": found[0]}
        if getattr(self.pipe, "text_encoder_2", None) is not None:
            side = (self.shape[1] * self.pipe.vae_scale_factor, self.shape[2] * self.pipe.vae_scale_factor)
            width = self.pipe.text_encoder_2.config.projection_dim
            ids = self.pipe._get_add_time_ids(side, (0, 0), side, found[0].dtype, text_encoder_projection_dim=width)
            cond |= {"text_embeds": found[2], "time_ids": ids.to(self.device).repeat(len(prompts), 1)}
        return cond

    def unconditional(self) -> Conditioning:
        """The condition [1, ...] of no prompt: that of the empty one, or zeros where the pipeline takes those."""
        cond = self.with_rows(1).encode_prompts([""])
        if self.pipe.config.get("force_zeros_for_empty_prompt", False):
            cond |= {name: torch.zeros_like(value) for name, value in cond.items() if name != "time_ids"}
        return cond
