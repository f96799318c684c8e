"""A monitor for a training loop of one's own: from which step on are the trained pictures told apart from held-out ones?

    pipe = DDPMPipeline(accelerator.unwrap_model(model), noise_scheduler)
    monitor = Monitor(pipe, training=some, heldout=others, every=200, log="runs/monitor", report=accelerator.log)
    monitor.step(0)  # before the training
    for batch in train_dataloader:
        ...
        global_step += 1
        monitor.step(global_step)

Draw the held-out pictures at random from the pool before the training, and train on none of them. Then, as long as the training
does nothing to its own pictures in particular, the chance of an alarm in the whole run is at most `alpha` (see
`memlib.evaluation.looks`). All looks score the same pictures with the same noises, and what is compared is the change since the
first look: what a picture is by itself cancels.

That trained pictures are told apart (membership) comes before copies come out (memorisation), and need not lead to it. Copies
are seen in samples alone.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.detectors import find
from memlib.detectors.api import Items, as_list
from memlib.evaluation.looks import judge, level_at
from memlib.fields.load import check_pipeline, field_of
from memlib.files import atomic_write, read_json, write_json, write_table
from memlib.processes import processes
from memlib.tensors import check_images, to_float

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

PICTURES = {"loss": {"sigma": 0.2, "draws": [4]}}  # the detectors of models without prompts
PROMPTED = {"loss": {"sigma": 1.0, "draws": [4], "prompt": True}}  # in latents, under each picture's own prompt
SCORES, LOOKS, ABOUT = "scores.parquet", "looks.csv", "about.json"
RANGE = 1 + 1e-3  # of pictures in [-1, 1], a little rounding
logger = logging.getLogger(__name__)


class Monitor:
    """Scores of trained and held-out pictures at every so many steps of a training, and what they say.

    looks: a row a look and detector, as `looks.csv` in the folder of the log has it: step, detector, `auroc` of trained against
    held-out pictures with its 95 % interval from `low` to `high`, `p_value` and `level` (an alarm, `told_apart`, where the first
    is no larger), `named` (how many trained pictures are discoveries by themselves), `evaluations` of the network and `seconds`.
    The first look, from which changes are counted, has no row. scores: a row a step, detector and picture; `scores.parquet`.
    onset: the first step at which trained pictures were told apart; None before.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        training: Tensor,
        heldout: Tensor,
        every: int,
        log: str | Path,
        detectors: Mapping[str, Mapping[str, Any]] | None = None,
        training_prompts: Sequence[str] | None = None,
        heldout_prompts: Sequence[str] | None = None,
        ema: "EMAModel | None" = None,
        report: Callable[[dict[str, float], int], Any] | None = None,
        alpha: float = 0.05,
        rate: float = 0.1,
        rows: int = 16,
        seed: int = 0,
    ) -> None:
        """Watch a pipeline that is made of the very modules that are trained, unwrapped.

        training, heldout: pictures [N, C, H, W] and [M, C, H, W], uint8 or in [-1, 1], with a prompt each for a text-to-image
        model. detectors: a setting of each by its name; those that take derivatives need a training in full precision. ema:
        moving average of the network's weights, which is scored in their place. report: is given the figures of a look by their
        names and the step, such as `accelerator.log`. alpha: chance of a false alarm in the whole run, by any detector. rate:
        share of false discoveries among the pictures named, on average. rows: pictures in one call of the network. Of processes
        started together each makes a monitor and calls its `step`; they share the pictures, and the first one writes. Weights
        that are spread over processes (FSDP, ZeRO-3) are not supported.

        A log of the same monitor is gone on with. Raises ValueError for that of another one, for a pipeline, detectors or
        pictures that do not fit, for a picture on both sides, and for too few of them to alarm at all.
        """
        if not isinstance(pipe, DiffusionPipeline):
            raise ValueError(
                f"a monitor watches a pipeline, such as DDPMPipeline(unet, scheduler); got a {type(pipe).__name__}"
            )
        check_pipeline(pipe)
        if every < 1:
            raise ValueError(f"a monitor looks every so many steps, at least 1; got {every}")
        self.pipe, self.ema, self.report, self.size = pipe, ema, report, rows
        self.every, self.log, self.rate = every, Path(log), rate
        self.network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
        check_average(ema, self.network)
        texts = None if training_prompts is None else [*training_prompts, *(heldout_prompts or ())]
        with undisturbed(pipe):
            field = field_of(pipe)
            groups = [as_pictures(each, field.picture_shape) for each in (training, heldout)]
            if texts is not None and len(texts) != sum(map(len, groups)):
                raise ValueError(f"{sum(map(len, groups))} pictures need a prompt each; there are {len(texts)}")
            ids = [
                f"{side} {row}"
                for side, group in zip(("trained", "held out"), groups, strict=True)
                for row in range(len(group))
            ]
            self.items = Items(ids, seed, torch.cat(groups), texts)
            self.detectors = {**(detectors or (PROMPTED if field.takes_prompts else PICTURES))}
            for name, setting in self.detectors.items():
                find(name).check(field, self.items, setting)
        self.alpha = alpha / len(self.detectors)
        check_groups(*groups, self.alpha)
        self.is_trained = pd.Series([row < len(groups[0]) for row in range(len(ids))], ids)
        self.scores, self.looks, self.started = pd.DataFrame(), pd.DataFrame(), False
        self.latest: int | None = None
        if processes().is_main_process:
            self._resume()
        self._share()

    @property
    def onset(self) -> int | None:
        """The first step at which trained pictures were told apart from held-out ones; None before."""
        alarms = self.looks.loc[self.looks["told_apart"], "step"] if len(self.looks) else []
        return int(alarms.min()) if len(alarms) else None

    def step(self, step: int) -> pd.DataFrame | None:
        """Look, if it is time: at the first call ever, and where `every` divides the number of steps done; the rows of that look.

        To be called after the optimiser's step, outside of autocast. Weights, gradients, modes of modules and random states are
        afterwards as they were. Looks at later steps, which a training that goes on from a checkpoint repeats, are dropped.
        """
        if step == self.latest or (self.started and step % self.every):
            return None
        self.latest = step
        begun = time.perf_counter()
        found, evaluations = self._score()
        if processes().is_main_process:
            self._add(step, found, evaluations, time.perf_counter() - begun)
        self._share()
        return self.looks[self.looks["step"] == step] if len(self.looks) else self.looks

    def _score(self) -> tuple[pd.DataFrame, dict[str, int]]:
        """A row a detector and picture, and the evaluations of the network by detector, over all processes."""
        if torch.is_autocast_enabled(self.network.device.type):
            raise ValueError("the monitor is called under autocast; call it after the optimiser's step, outside of it")
        state, count, rows, evaluations = processes(), len(self.items.ids), [], {}
        own = range(count)[state.process_index :: state.num_processes]
        with undisturbed(self.pipe), averaged(self.ema, self.network):
            field = field_of(self.pipe).with_rows(self.size)
            for name, setting in self.detectors.items():
                for start in range(0, len(own), self.size):
                    items = self.items.rows(own[start : start + self.size])
                    scores = as_list(find(name).score(field, items, **setting))
                    if len(scores) != 1:
                        raise ValueError(
                            f"the detector {name} gives {len(scores)} scores at {dict(setting)}; ask for one"
                        )
                    rows += [(name, *row) for row in zip(items.ids, scores[0].value.tolist(), strict=True)]
                    evaluations[name] = scores[0].evaluations * count
        return pd.DataFrame(gather_object(rows), columns=["detector", "picture", "score"]), evaluations

    def _add(self, step: int, found: pd.DataFrame, evaluations: Mapping[str, int], seconds: float) -> None:
        """Add a look to the tables, write them, and tell what is new."""
        told = self.onset is not None
        earlier, looks = (part[part["step"] < step] if len(part) else part for part in (self.scores, self.looks))
        self.scores = pd.concat([earlier, found.assign(step=step)], ignore_index=True)
        self.started = True
        if len(earlier):
            rows = [self._judged(name, step) | {"evaluations": evaluations[name]} for name in self.detectors]
            new = pd.DataFrame(rows).assign(seconds=round(seconds, 3))
            self.looks = pd.concat([looks, new], ignore_index=True) if len(looks) else new
        else:
            self.looks = looks
        with atomic_write(self.log / LOOKS) as temporary:
            self.looks.to_csv(temporary, index=False)
        write_table(self.log / SCORES, self.scores)
        rows = self.looks[self.looks["step"] == step].to_dict("records") if len(self.looks) else []
        if rows and self.report is not None:
            figures = ("auroc", "p_value", "told_apart", "named")
            self.report(
                {f"monitor/{row['detector']}/{name}": float(row[name]) for row in rows for name in figures}, step
            )
        if not told and self.onset is not None:
            logger.warning(self._words(next(row for row in rows if row["told_apart"])))

    def _judged(self, detector: str, step: int) -> dict[str, Any]:
        scores = self.scores[self.scores["detector"] == detector].pivot(index="step", columns="picture", values="score")
        changes = scores.loc[step] - scores.iloc[0]
        trained = self.is_trained[changes.index]
        look = judge(changes[trained], changes[~trained], scores.index.get_loc(step), self.alpha, self.rate)
        return {
            "step": step,
            "detector": detector,
            **dict(zip(("auroc", "low", "high"), look.auroc, strict=True)),
            "p_value": look.p_value,
            "level": look.level,
            "told_apart": look.told_apart,
            "named": int(look.named.sum()),
        }

    def _words(self, row: Mapping[str, Any]) -> str:
        trained, heldout = int(self.is_trained.sum()), int((~self.is_trained).sum())
        return (
            f"step {row['step']}: {trained} trained pictures are told apart from {heldout} held-out ones by {row['detector']} "
            f"(AUROC {row['auroc']:.2f}, p = {row['p_value']:.2g} at a level of {row['level']:.2g}), {row['named']} of them by "
            "themselves; draw samples to see whether the model copies"
        )

    def _resume(self) -> None:
        """Take up the log that is there: the looks whose scores and rows both were written."""
        pictures = self.items.pictures.contiguous().numpy().tobytes() + json.dumps(self.items.prompts).encode()
        about = {
            "pictures or prompts": hashlib.sha256(pictures).hexdigest(),
            "detectors": self.detectors,
            "seed": self.items.seed,
            "alpha": self.alpha,
            "rate": self.rate,
        }
        if not (self.log / ABOUT).exists():
            write_json(self.log / ABOUT, about)
        there = read_json(self.log / ABOUT)
        other = next((name for name in about if there.get(name) != json.loads(json.dumps(about[name]))), None)
        if other is not None:
            raise ValueError(f"{self.log} holds the log of a monitor with other {other}; name another folder")
        if not (self.log / SCORES).exists():
            return
        self.scores, self.started = pd.read_parquet(self.log / SCORES), True
        with suppress(pd.errors.EmptyDataError):
            self.looks = pd.read_csv(self.log / LOOKS)
        if len(self.looks):
            self.looks = self.looks[self.looks["step"].isin(self.scores["step"])]

    def _share(self) -> None:
        """Let all processes know what the first one has found."""
        [(self.looks, self.started)] = broadcast_object_list([(self.looks, self.started)])


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


def check_average(ema: "EMAModel | None", network: torch.nn.Module) -> None:
    """Raise ValueError for a moving average of other weights."""
    if ema is not None and [each.shape for each in ema.shadow_params] != [each.shape for each in network.parameters()]:
        raise ValueError("the moving average is of other weights than those of the pipeline's network")


def as_pictures(pictures: Tensor, shape: Sequence[int]) -> Tensor:
    """Pictures [N, *shape] in [-1, 1], on the processor; raises ValueError for another shape or range."""
    pictures = to_float(pictures) if pictures.dtype == torch.uint8 else pictures.float()
    if list(pictures.shape[1:]) != list(shape):
        raise ValueError(f"the model makes pictures of {list(shape)}; the monitor is given {list(pictures.shape[1:])}")
    if check_images(pictures).numel() and pictures.abs().max() > RANGE:
        raise ValueError(f"pictures must be uint8 or lie in [-1, 1]; one reaches {float(pictures.abs().max()):.3g}")
    return pictures.cpu()


def check_groups(training: Tensor, heldout: Tensor, alpha: float) -> None:
    """Raise ValueError for a picture on both sides, and for so few that not even the first look could alarm."""
    if not 0 < alpha < 1:
        raise ValueError(f"the chance of a false alarm lies between 0 and 1, such as 0.05; got {alpha}")
    seen = {picture.numpy().tobytes() for picture in training}
    row = next((row for row, picture in enumerate(heldout) if picture.numpy().tobytes() in seen), None)
    if row is not None:
        raise ValueError(f"the held-out picture {row} is also in training; hold it out of both, or train on it alone")
    least = 1 / comb(len(training) + len(heldout), len(training))
    if min(len(training), len(heldout)) < 2 or least > level_at(1, alpha):
        raise ValueError(
            f"{len(training)} trained and {len(heldout)} held-out pictures cannot alarm at a rate of {alpha:g}; take 48 of each"
        )
