"""Pictures that are scored in the course of a training, which goes on as if nobody had looked."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.detectors.api import Detector, Items, as_list
from memlib.fields.load import check_network, check_pipeline, field_of
from memlib.processes import processes
from memlib.tensors import check_images, to_float

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

RANGE = 1 + 1e-3  # of pictures in [-1, 1], a little rounding


class Watched:
    """Pictures that a model is trained on and others that are held out, with what they are scored by.

    items: the trained ones first, `trained 0` and so on, then `held out 0` and so on. trained: whether each is, by its name.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        training: Tensor,
        heldout: Tensor,
        detectors: Sequence[tuple[Detector, Mapping[str, Any]]],
        prompts: Sequence[str] | None = None,
        ema: "EMAModel | None" = None,
        rows: int = 16,
        seed: int = 0,
    ) -> None:
        """Watch pictures [N, C, H, W] and [M, C, H, W], uint8 or in [-1, 1], by detectors, each at a setting.

        pipe: made of the very modules that are trained, unwrapped. prompts: N + M, in the same order. ema: moving average of the
        network's weights, which is scored in their place. rows: pictures in one call of the network. Raises ValueError for a
        pipeline, detectors, weights or pictures that do not fit, and for a picture on both sides.
        """
        if not isinstance(pipe, DiffusionPipeline):
            raise ValueError(
                f"a pipeline is watched, such as DDPMPipeline(unet, scheduler); got a {type(pipe).__name__}"
            )
        check_pipeline(pipe)
        self.pipe, self.ema, self.rows, self.detectors = pipe, ema, rows, list(detectors)
        part = "transformer" if hasattr(pipe, "transformer") else "unet"
        self.network = getattr(pipe, part)
        check_network(type(pipe).__name__, part, self.network.config)
        check_average(ema, self.network)
        with undisturbed(pipe):
            field = field_of(pipe)
            groups = [as_pictures(each, field.picture_shape) for each in (training, heldout)]
            check_apart(*groups)
            if all(each.is_floating_point() and each.numel() and each.min() >= 0 for each in (training, heldout)):
                warnings.warn(
                    "no value of the pictures is below 0; float pictures must lie in [-1, 1], not in [0, 1]",
                    stacklevel=3,
                )
            if prompts is not None and len(prompts) != sum(map(len, groups)):
                raise ValueError(f"{sum(map(len, groups))} pictures need a prompt each; there are {len(prompts)}")
            ids = [
                f"{side} {row}"
                for side, group in zip(("trained", "held out"), groups, strict=True)
                for row in range(len(group))
            ]
            self.items = Items(ids, seed, torch.cat(groups), prompts)
            for detector, setting in self.detectors:
                detector.check(field, self.items, setting)
        self.trained = pd.Series([row < len(groups[0]) for row in range(len(ids))], ids)

    def score(self) -> pd.DataFrame:
        """A row a detector and picture: detector, picture, score and evaluations, from the same noises at every call.

        Processes started together share the pictures, and each is given all rows. Weights, gradients, modes of modules and
        random states are afterwards as they were. Raises ValueError under autocast, and for a detector that gives several scores.
        """
        if torch.is_autocast_enabled(self.network.device.type):
            raise ValueError("pictures are scored under autocast; do it after the optimiser's step, outside of it")
        state, found = processes(), []
        own = range(len(self.items.ids))[state.process_index :: state.num_processes]
        with undisturbed(self.pipe), averaged(self.ema, self.network), quiet(self.pipe), without_autocast(self.network):
            field = field_of(self.pipe).with_rows(self.rows)
            for detector, setting in self.detectors:
                for start in range(0, len(own), self.rows):
                    items = self.items.rows(own[start : start + self.rows])
                    scores = as_list(detector.score(field, items, **setting))
                    if len(scores) != 1:
                        raise ValueError(
                            f"the detector {detector.name} gives {len(scores)} scores at {dict(setting)}; ask for one"
                        )
                    pairs = zip(items.ids, scores[0].value.tolist(), strict=True)
                    found += [(detector.name, *pair, scores[0].evaluations) for pair in pairs]
        return pd.DataFrame(gather_object(found), columns=["detector", "picture", "score", "evaluations"])


@contextmanager
def undisturbed(pipe: DiffusionPipeline) -> Iterator[None]:
    """All networks of a pipeline in evaluation mode for a while; their modes and torch's random states are put back."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def without_autocast(network: torch.nn.Module) -> Iterator[None]:
    """A network's own forward pass for a while, if accelerate has laid autocast around it for the training."""
    wrapped = network.__dict__.get("forward")
    if wrapped is None or not hasattr(network, "_original_forward"):
        yield
        return
    network.forward = network._original_forward
    try:
        yield
    finally:
        network.forward = wrapped


@contextmanager
def averaged(ema: "EMAModel | None", network: torch.nn.Module) -> Iterator[None]:
    """The moving average in place of a network's weights for a while, if there is one."""
    if ema is None:
        yield
        return
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    try:
        yield
    finally:
        ema.restore(network.parameters())


@contextmanager
def quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """No warnings of a pipeline for a while: prompts that are too long are cut as in training, at every look."""
    log = logging.getLogger(type(pipe).__module__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def check_average(ema: "EMAModel | None", network: torch.nn.Module) -> None:
    """Raise ValueError for a moving average of other weights."""
    if ema is not None and [each.shape for each in ema.shadow_params] != [each.shape for each in network.parameters()]:
        raise ValueError("the moving average is of other weights than those of the pipeline's network")


def as_pictures(pictures: Tensor, shape: Sequence[int]) -> Tensor:
    """Pictures [N, *shape] in [-1, 1], on the processor; raises ValueError for what is no tensor, another shape or range."""
    if not isinstance(pictures, Tensor):
        raise ValueError(
            f"a monitor is given pictures as one tensor [N, {', '.join(map(str, shape))}], uint8 or in [-1, 1]; "
            f"got a {type(pictures).__name__}"
        )
    pictures = to_float(pictures) if pictures.dtype == torch.uint8 else pictures.float()
    if list(pictures.shape[1:]) != list(shape):
        raise ValueError(f"the model makes pictures of {list(shape)}; the monitor is given {list(pictures.shape[1:])}")
    if check_images(pictures).numel() and pictures.abs().max() > RANGE:
        raise ValueError(f"pictures must be uint8 or lie in [-1, 1]; one reaches {float(pictures.abs().max()):.3g}")
    return pictures.cpu()


def check_apart(training: Tensor, heldout: Tensor) -> None:
    """Raise ValueError for a picture on both sides."""
    seen = {picture.numpy().tobytes() for picture in training}
    row = next((row for row, picture in enumerate(heldout) if picture.numpy().tobytes() in seen), None)
    if row is not None:
        raise ValueError(f"the held-out picture {row} is also in training; hold it out of both, or train on it alone")
