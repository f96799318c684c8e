"""A monitor for a training loop of one's own: from which step on are the trained pictures told apart from held-out ones?

    pipe = DDPMPipeline(accelerator.unwrap_model(model), noise_scheduler)
    monitor = Monitor(pipe, training=some, heldout=others, every=200, log="runs/monitor", report=accelerator.log)
    monitor.step(global_step)  # before the training; 0, or where a checkpoint goes on
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.detectors import find
from memlib.evaluation.looks import RATE, judge, level_at
from memlib.fields.digest import weights_digest
from memlib.fields.load import field_of
from memlib.files import atomic_write, read_json, write_json, write_table
from memlib.processes import processes
from memlib.watched import Watched, averaged, undisturbed

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

PICTURES = {"loss": {"sigma": 0.2, "draws": [4]}}  # the detectors of models without prompts
PROMPTED = {"loss": {"sigma": 1.0, "draws": [4], "prompt": True}}  # in latents, under each picture's own prompt
SCORES, LOOKS, ABOUT = "scores.parquet", "looks.csv", "about.json"
WEIGHTS = "weights at the first look"
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
        rate: float = RATE,
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

        An existing log of the same monitor is continued. Raises ValueError for that of another one, for a pipeline, detectors or
        pictures that do not fit, for prompts of one side alone, for a picture on both sides, and for too few of them to alarm at
        all.
        """
        if every < 1:
            raise ValueError(f"a monitor looks every so many steps, at least 1; got {every}")
        if (training_prompts is None) != (heldout_prompts is None):
            given, missing = ("held-out", "trained") if training_prompts is None else ("trained", "held-out")
            raise ValueError(
                f"the {given} pictures have prompts and the {missing} ones have none; give both or neither"
            )
        prompts = None if training_prompts is None else [*training_prompts, *heldout_prompts]
        self.detectors = dict(detectors or (PICTURES if getattr(pipe, "text_encoder", None) is None else PROMPTED))
        chosen = [(find(name), setting) for name, setting in self.detectors.items()]
        self.watched = Watched(pipe, training, heldout, chosen, prompts, ema, rows, seed)
        self.alpha = alpha / len(chosen)
        check_groups(len(training), len(heldout), self.alpha)
        self.every, self.log, self.rate, self.report = every, Path(log), rate, report
        self.scores, self.looks = pd.DataFrame(), pd.DataFrame()
        self.first: int | None = None
        self.weights: str | None = None  # digest of them at the first look
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
        afterwards as they were. Looks at later steps, which a training that goes on from a checkpoint repeats, are dropped; the
        first look is never repeated, so a training that begins anew takes a new log: raises ValueError at the step of the first
        look for other weights than it saw.
        """
        if step == self.latest or (self.first not in (None, step) and step % self.every):
            return None
        if step == self.first:
            if self.weights not in (None, self._digest()):
                raise ValueError(
                    f"{self.log} holds the log of a training that had other weights at step {step}; name another folder, or go "
                    "on from a checkpoint with its own step"
                )
            self.latest = step
            return None
        self.latest = step
        begun = time.perf_counter()
        found = self.watched.score()
        broken = found[~np.isfinite(found["score"])]
        if len(broken) and self.first is None:
            raise ValueError(
                f"the score of {broken['picture'].iloc[0]} is not finite at the first look, with which all later ones are "
                "compared; look at its values, and score in full precision"
            )
        if processes().is_main_process:
            if len(broken):
                logger.warning(
                    f"step {step}: {len(broken)} of {len(found)} scores are not finite, so nothing can be told apart"
                )
            self._add(step, found, time.perf_counter() - begun)
        self._share()
        return self.looks[self.looks["step"] == step] if len(self.looks) else self.looks

    def _add(self, step: int, found: pd.DataFrame, seconds: float) -> None:
        """Add a look to the tables, write them, and tell what is new."""
        earlier, looks = (part[part["step"] < step] if len(part) else part for part in (self.scores, self.looks))
        told = len(looks) > 0 and bool(looks["told_apart"].any())
        new = found.drop(columns="evaluations").assign(step=step)
        if not len(earlier):
            self.weights = self._digest()
            write_json(self.log / ABOUT, read_json(self.log / ABOUT) | {WEIGHTS: self.weights})
        self.scores = pd.concat([earlier, new], ignore_index=True)
        self.first = int(self.scores["step"].iloc[0])
        if len(earlier):
            cost = found.groupby("detector")["evaluations"].sum()
            rows = [self._judged(name, step) | {"evaluations": int(cost[name])} for name in self.detectors]
            judged = pd.DataFrame(rows).assign(seconds=round(seconds, 3))
            self.looks = pd.concat([looks, judged], ignore_index=True) if len(looks) else judged
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

    def _digest(self) -> str:
        """Digest of the weights that are scored."""
        with undisturbed(self.watched.pipe), averaged(self.watched.ema, self.watched.network):
            return weights_digest(field_of(self.watched.pipe))

    def _judged(self, detector: str, step: int) -> dict[str, Any]:
        scores = self.scores[self.scores["detector"] == detector].pivot(index="step", columns="picture", values="score")
        changes = scores.loc[step] - scores.iloc[0]
        trained = self.watched.trained[changes.index]
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
        trained, heldout = int(self.watched.trained.sum()), int((~self.watched.trained).sum())
        return (
            f"step {row['step']}: {trained} trained pictures are told apart from {heldout} held-out ones by {row['detector']} "
            f"(AUROC {row['auroc']:.2f}, p = {row['p_value']:.2g} at a level of {row['level']:.2g}), {row['named']} of them by "
            "themselves; draw samples to see whether the model copies"
        )

    def _resume(self) -> None:
        """Take up the log that is there: the looks whose scores and rows both were written."""
        pictures = (
            self.watched.items.pictures.contiguous().numpy().tobytes() + json.dumps(self.watched.items.prompts).encode()
        )
        about = {
            "pictures or prompts": hashlib.sha256(pictures).hexdigest(),
            "detectors": self.detectors,
            "seed": self.watched.items.seed,
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
        self.weights = there.get(WEIGHTS)
        self.scores = pd.read_parquet(self.log / SCORES)
        self.first = int(self.scores["step"].iloc[0])
        with suppress(pd.errors.EmptyDataError):
            self.looks = pd.read_csv(self.log / LOOKS)
        if len(self.looks):
            self.looks = self.looks[self.looks["step"].isin(self.scores["step"])]

    def _share(self) -> None:
        """Let all processes know what the first one has found."""
        [(self.looks, self.first, self.weights)] = broadcast_object_list([(self.looks, self.first, self.weights)])


def check_groups(trained: int, heldout: int, alpha: float) -> None:
    """Raise ValueError for so few pictures that not even the first look could alarm."""
    if not 0 < alpha < 1:
        raise ValueError(f"the chance of a false alarm lies between 0 and 1, such as 0.05; got {alpha}")
    least = 1 / comb(trained + heldout, trained)
    if min(trained, heldout) < 2 or least > level_at(1, alpha):
        raise ValueError(
            f"{trained} trained and {heldout} held-out pictures cannot alarm at a rate of {alpha:g}; take 48 of each"
        )
