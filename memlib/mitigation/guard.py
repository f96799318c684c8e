"""A guard that reads a pipeline's first step and stops prompts that are likely to be copied from the training data.

With classifier-free guidance a pipeline predicts with the prompt and without anyway. The guard reads the distance between the
two at the first step, the magnitude of Wen et al. (arXiv 2407.21720), and asks the network for nothing more. Its threshold is
calibrated on ordinary prompts alone: no memorised one need be known.

    guard = calibrate(pipe, ordinary_prompts, false_alarms=0.01, num_inference_steps=50)
    guard.save("guard.json")
    with load("guard.json", pipe).on(pipe):
        pipe(prompt, num_inference_steps=50)
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.fields.digest import weights_digest
from memlib.fields.load import check_text, field_of
from memlib.fields.parameterisation import expected_data
from memlib.fields.transformer import find as adapter_of
from memlib.files import read_json, suggest, write_json
from memlib.mitigation.prompts import move_embeddings
from memlib.progress import progress
from memlib.sampling.pipeline import check_prompts, chunks, quiet
from memlib.tensors import generators, item_seeds

Action = Literal["refuse", "warn", "less guidance", "another seed", "moved embedding"]
ROUNDING = 1e-9
READ, ALIKE = 64, 0.05  # numbers that are kept of an embedding; how far they may be off, as a share of the largest
OTHERS = "choose refuse or warn"
SAME_STEP = 5e-3  # of the schedule's length: timesteps that lie as near are one, rounded to bfloat16


class MemorisedPrompt(RuntimeError):
    """A prompt that is likely to give a copy was refused.

    rows: numbers of the pictures that are meant. magnitudes: of all pictures of the call.
    """

    def __init__(self, message: str, rows: list[int], magnitudes: list[float]) -> None:
        super().__init__(message)
        self.rows, self.magnitudes = rows, magnitudes


class _Measured(Exception):
    """All that calibration asks for is known."""


@dataclass(frozen=True)
class Guard:
    """A threshold of the magnitude at the first step, and for what it holds.

    An ordinary picture exceeds `threshold` with a chance of at most `false_alarms`. ordinary: prompts that it is calibrated on.
    timestep: the first of sampling. shape: of what the network is given for a picture. empty: numbers of the embedding without
    the prompt, that of the negative prompt if there is one. weights: digest of the model.
    """

    threshold: float
    false_alarms: float
    ordinary: int
    timestep: float
    shape: list[int]
    empty: list[float]
    weights: str

    def save(self, path: str | Path) -> None:
        """Write the guard as JSON."""
        write_json(path, asdict(self))

    @contextmanager
    def on(
        self, pipe: DiffusionPipeline, action: Action = "refuse", iterations: int = 10, learning_rate: float = 0.05
    ) -> Iterator["Watch"]:
        """Watch the first step of every call of a pipeline; a picture whose magnitude exceeds the threshold is acted upon.

        refuse: raise MemorisedPrompt. warn: warn and go on. less guidance: scale what the prompt changes, at all steps of this
        picture, so that the magnitude is that of the threshold. another seed: start from other noise, at most `iterations`
        times. moved embedding: move the prompt's embedding as `memlib.mitigation.prompts`, at most `iterations` times. Where the
        last two do not get below the threshold they refuse. When the block ends the pipeline is as it was.

        Raises ValueError for an unknown action, a pipeline that is not supported and, when it is called, one that makes no
        unconditional prediction, starts at another timestep than it was calibrated at, draws pictures of another size, has
        another negative prompt, or whose predictions cannot be changed as asked. That the pipeline is of the model that the guard
        was calibrated on is checked by `load` alone.
        """
        watch = Watch(pipe, self, action, iterations, learning_rate)
        with watch.attached():
            yield watch


def load(path: str | Path, pipe: DiffusionPipeline) -> Guard:
    """The guard that `Guard.save` wrote; raises ValueError for another file, and for a guard of another model."""
    try:
        guard = Guard(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no guard ({error}); calibrate one and save it") from error
    if guard.weights != weights_digest(field_of(pipe)):
        raise ValueError(f"the guard in {path} is of another model; calibrate one for this pipeline")
    return guard


def calibrate(
    pipe: DiffusionPipeline,
    ordinary_prompts: Sequence[str],
    false_alarms: float = 0.01,
    seed: int = 0,
    rows: int = 16,
    **call: Any,
) -> Guard:
    """The guard whose threshold ordinary prompts exceed with a chance of at most `false_alarms`.

    It is the magnitude of rank `threshold_rank` among those of the distinct prompts, each from its own noise. `call` is what the
    pipeline will be called with, such as num_inference_steps, guidance_scale, height and width, and the negative prompt, which
    the magnitude compares with. Two network evaluations a prompt.

    Raises ValueError for a pipeline that is not supported, a rate that is none, too few prompts, weights that are not there (of a
    pipeline offloaded a layer at a time), and for a magnitude that is not finite.
    """
    check_text(pipe)
    check_prompts(ordinary_prompts)
    if not 0 < false_alarms < 1:
        raise ValueError(f"a rate of false alarms lies between 0 and 1, such as 0.01; got {false_alarms}")
    prompts = list(dict.fromkeys(ordinary_prompts))
    rank = threshold_rank(len(prompts), false_alarms)
    watch = Watch(pipe, None, "refuse", 0, 0.0)
    try:
        weights = weights_digest(field_of(pipe))
    except NotImplementedError as error:
        raise ValueError("the pipeline's weights are offloaded; calibrate the guard before that") from error
    magnitudes: list[float] = []
    with watch.attached(), quiet(pipe):
        for chunk in progress(list(chunks(prompts, rows)), "calibrating the guard"):
            noise = generators(item_seeds(chunk, seed))
            texts = {
                name: [value] * len(chunk) if name.startswith("negative_prompt") and isinstance(value, str) else value
                for name, value in call.items()
            }
            with suppress(_Measured):
                pipe(prompt=list(chunk), generator=noise, **texts | {"num_images_per_prompt": 1})
                raise ValueError(f"{type(pipe).__name__} made no prediction with the prompt and without; set guidance")
            for prompt, value in zip(chunk, watch.magnitudes, strict=True):
                if not math.isfinite(value):
                    raise ValueError(f"the magnitude of {prompt!r} is {value}; load the model in another precision")
            magnitudes += watch.magnitudes
    pipe.maybe_free_model_hooks()
    return Guard(
        threshold=sorted(magnitudes)[rank - 1],
        false_alarms=false_alarms,
        ordinary=len(prompts),
        timestep=watch.timestep,
        shape=watch.shape,
        empty=watch.empty,
        weights=weights,
    )


def threshold_rank(count: int, false_alarms: float) -> int:
    """Which of so many ordinary magnitudes, from the smallest, is the threshold: k = ceil((count + 1) (1 - false_alarms)).

    A further one, exchangeable with them, exceeds it with a chance of at most 1 - k / (count + 1), the conformal quantile (Bates
    et al., arXiv 2104.08279, section 2). Raises ValueError where there are too few of them for the rate.
    """
    rank = math.ceil((count + 1) * (1 - false_alarms) - ROUNDING)
    if rank > count:
        least = math.ceil(1 / false_alarms - ROUNDING) - 1
        raise ValueError(
            f"a rate of {100 * false_alarms:g} % of false alarms needs at least {least} different ordinary prompts; there are "
            f"{count}"
        )
    return max(rank, 1)


class Watch:
    """What a guard sees of a pipeline, and does to it.

    magnitudes: of the pictures of the last call. alarms: how many pictures of all calls exceeded the threshold. timestep: the
    first of the last call. shape, empty: of what its network was given, as a guard has them. Without a guard every call ends
    after that step.
    """

    def __init__(
        self, pipe: DiffusionPipeline, guard: Guard | None, action: Action, iterations: int, learning_rate: float
    ) -> None:
        if action not in get_args(Action):
            raise ValueError(f"unknown action {action!r}{suggest(action, get_args(Action))}")
        check_text(pipe)
        self.pipe, self.guard, self.action = pipe, guard, action
        self.iterations, self.learning_rate = iterations, learning_rate
        self.network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
        self.apart = hasattr(pipe, "transformer") and adapter_of(type(self.network).__name__).apart
        if self.apart and action not in ("refuse", "warn"):
            raise ValueError(
                f"{type(pipe).__name__} predicts with the prompt before it predicts without; choose refuse or warn"
            )
        self.field = field_of(pipe)
        self.magnitudes: list[float] = []
        self.shape: list[int] = []
        self.empty: list[float] = []
        self.alarms, self.timestep = 0, math.nan
        self._begin(False)

    def _begin(self, first: bool) -> None:
        """A new call of the pipeline, whose first step is still to come; or none."""
        self.first = first
        self.pending: Tensor | None = None
        self.scale: Tensor | None = None
        self.embeddings: Tensor | None = None
        self.sample: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the network, and the beginning of a call seen by the scheduler; all is taken off at the end."""
        scheduler = self.scheduler = self.pipe.scheduler
        before = {name: scheduler.__dict__.get(name) for name in ("set_timesteps", "step")}
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        @functools.wraps(set_timesteps)
        def begin(*arguments: Any, **keywords: Any) -> Any:
            found = set_timesteps(*arguments, **keywords)
            self._begin(True)
            self.timestep = float(scheduler.timesteps[0])
            return found

        @functools.wraps(step)
        def stepped(output: Tensor, t: Any, sample: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.first:
                self._without_guidance()
            if self.sample is not None:
                sample, self.sample = self.sample(sample), None
            return step(output, t, sample, *arguments, **keywords)

        handles = [
            self.network.register_forward_pre_hook(self._given, with_kwargs=True),
            self.network.register_forward_hook(self._seen, with_kwargs=True),
        ]
        scheduler.set_timesteps, scheduler.step = begin, stepped
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, value in before.items():
                if value is None:
                    delattr(scheduler, name)
                else:
                    setattr(scheduler, name, value)
            self._begin(False)

    def _given(self, _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Moved embeddings in place of the prompts', at the steps after the first; of the prompts alone once guidance is off."""
        if self.pipe.scheduler is not self.scheduler:
            raise ValueError("the scheduler was exchanged while the guard was on; exchange it before")
        if self.embeddings is None:
            return None
        given = keywords["encoder_hidden_states"]
        moved = self.embeddings if len(given) == len(self.embeddings) else self.embeddings.chunk(2)[1]
        if moved.shape != given.shape:
            raise ValueError(
                f"after the first step this call gives embeddings of the shape {list(given.shape)}; {OTHERS}"
            )
        return arguments, keywords | {"encoder_hidden_states": moved.to(given)}

    def _seen(self, _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        """The first step's predictions are judged; those of later ones changed, if that was chosen.

        What the guard itself asks the network comes here, too, when `first` is over and before anything is to be changed.
        """
        if self.first:
            output = self._first_step(arguments, keywords, output)
        if self.scale is None or self.first:
            return output
        if len(output[0]) != 2 * len(self.scale):
            raise ValueError(f"after the first step this call predicts without guidance, or once more; {OTHERS}")
        without, with_prompt = output[0].chunk(2)
        change = self.scale.to(without).reshape(-1, *[1] * (without.ndim - 1)) * (with_prompt - without)
        return (torch.cat([without, without + change]), *output[1:])

    def _first_step(self, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        x = arguments[0] if arguments else keywords.get("sample", keywords.get("hidden_states"))
        self._from_pure_noise(arguments[1] if len(arguments) > 1 else keywords["timestep"])
        halves = self._halves(x, output[0])
        if halves is None:
            return output
        embedded = keywords["encoder_hidden_states"][0].detach().float().flatten()
        self.empty = embedded[torch.linspace(0, len(embedded) - 1, READ).long()].tolist()
        self.first, self.shape = False, list(x.shape[1:])
        magnitude = self._magnitude(x, *halves)
        self.magnitudes = magnitude.tolist()
        if self.guard is None:
            raise _Measured
        if self.timestep != self.guard.timestep:
            raise ValueError(
                f"this call starts at the timestep {self.timestep:g}, but the guard was calibrated at {self.guard.timestep:g}; "
                "calibrate it with the same number of steps"
            )
        if self.shape != self.guard.shape:
            raise ValueError(
                f"this call gives the network {self.shape} for a picture, but the guard was calibrated at {self.guard.shape}; "
                "calibrate it with the same height and width"
            )
        known, found = torch.tensor(self.guard.empty), torch.tensor(self.empty)
        if known.shape != found.shape or (known - found).abs().max() > ALIKE * known.abs().max():
            raise ValueError(
                "this call has another negative prompt than the guard was calibrated with; calibrate it with that, too"
            )
        flagged = [row for row, value in enumerate(self.magnitudes) if not value <= self.guard.threshold]
        self.alarms += len(flagged)
        if not flagged:
            return output
        if self.action in ("another seed", "moved embedding") and holds_several(keywords):
            raise ValueError(
                f"this call gives the network more than noise and prompts, as a ControlNet or an IP-Adapter does; {OTHERS}"
            )
        match self.action:
            case "refuse":
                self._refuse(flagged, "")
            case "warn":
                warnings.warn(self._words(flagged), stacklevel=2)
            case "less guidance":
                self.scale = (self.guard.threshold / magnitude).clamp(max=1)
            case "another seed":
                return self._other_noise(x, arguments, keywords, output, flagged)
            case "moved embedding":
                return self._moved(x, arguments, keywords, output, flagged)
        return output

    def _from_pure_noise(self, given: Any) -> None:
        """Raise ValueError where the network is given a later timestep than the first of the schedule.

        Networks are given it as it is, times a factor of their own (Sana), as a share of the schedule (Flux), or as what is left
        of one (Lumina 2).
        """
        found, steps = float(torch.as_tensor(given).flatten()[0]), self.pipe.scheduler.config.num_train_timesteps
        scale = float(getattr(self.network.config, "timestep_scale", None) or 1)
        possible = (found, found / scale, found * steps, (1 - found) * steps)
        if min(abs(each - self.timestep) for each in possible) > SAME_STEP * steps:
            raise ValueError(
                f"this call starts at the timestep {found:g}, not from pure noise at {self.timestep:g}; a guard reads that step"
            )

    def _halves(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor] | None:
        """Predictions without the prompt and with it; None until both are there."""
        if self.apart:
            with_prompt, self.pending = self.pending, output
            return None if with_prompt is None else (output, with_prompt)
        first, second = x[: len(x) // 2], x[len(x) // 2 :]
        if getattr(self.pipe, "do_classifier_free_guidance", True) and len(x) % 2 == 0 and torch.equal(first, second):
            return output.chunk(2)
        return self._without_guidance()

    def _without_guidance(self) -> NoReturn:
        raise ValueError(
            f"this call of {type(self.pipe).__name__} makes no prediction without the prompt, which the guard compares with; "
            "set a guidance above 1" + (", and a negative prompt, such as ' '" if self.apart else "")
        )

    def _magnitude(self, x: Tensor, without: Tensor, with_prompt: Tensor) -> Tensor:
        """|D_c - D_u| [N] (see `memlib.detectors.text`); of a network that also predicts a variance, by its first channels."""
        signal, noise = map(float, self.field.schedule.at(torch.tensor(self.timestep, dtype=torch.float64)))
        change = (with_prompt.float() - without.float())[:, : x.shape[1]]
        guess = expected_data(self.field.prediction_type, change, torch.zeros_like(change), signal, noise)
        return guess.flatten(1).norm(dim=1)

    def _words(self, flagged: Sequence[int]) -> str:
        found = ", ".join(f"picture {row}: {self.magnitudes[row]:.3g}" for row in flagged)
        return (
            f"likely to be copied from the training data ({found}; {100 * self.guard.false_alarms:g} % of ordinary pictures "
            f"exceed {self.guard.threshold:.3g})"
        )

    def _refuse(self, flagged: list[int], tried: str) -> None:
        self.pipe.maybe_free_model_hooks()
        raise MemorisedPrompt(self._words(flagged) + tried, flagged, self.magnitudes)

    def _again(
        self,
        x: Tensor,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        rows: Tensor,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction for some rows of a call, given x and embeddings in place of theirs."""
        whole = len(arguments[0] if arguments else keywords.get("sample", keywords.get("hidden_states")))

        def part(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: part(each) for name, each in value.items()}
            return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == whole else value

        given = {name: part(value) for name, value in keywords.items()}
        rest = tuple(map(part, arguments[1:]))
        if not arguments:
            given["sample" if "sample" in keywords else "hidden_states"] = x
        if embeddings is not None:
            given["encoder_hidden_states"] = embeddings
        return self.network(*((x, *rest) if arguments else ()), **given)[0]

    def _other_noise(
        self, x: Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any, flagged: list[int]
    ) -> Any:
        """Predictions from other noise for the flagged pictures, that of the first try below the threshold.

        The noise follows from the picture's own, so that a seed gives the same picture again.
        """
        count, changed, noise = len(x) // 2, output[0].clone(), {}
        left = list(flagged)
        for number in range(self.iterations):
            fresh = torch.stack([fresh_noise(x[row], number) for row in left])
            rows = torch.tensor([*left, *(row + count for row in left)], device=x.device)
            sample = fresh * float(getattr(self.pipe.scheduler, "init_noise_sigma", 1))
            given = self._scaled(sample)
            found = self._again(torch.cat([given, given]), arguments, keywords, rows)
            magnitude = self._magnitude(given, *found.chunk(2)).tolist()
            for place, row in enumerate(list(left)):
                if magnitude[place] <= self.guard.threshold:
                    changed[row], changed[row + count] = found[place], found[place + len(magnitude)]
                    noise[row], self.magnitudes[row] = sample[place], magnitude[place]
                    left.remove(row)
            if not left:
                break
        if left:
            self._refuse(left, f"; {self.iterations} other seeds were tried")

        def put_in(sample: Tensor) -> Tensor:
            sample = sample.clone()
            for row, value in noise.items():
                sample[row] = value
            return sample

        self.sample = put_in
        return (changed, *output[1:])

    def _scaled(self, sample: Tensor) -> Tensor:
        scheduler = self.pipe.scheduler
        scaled = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        return scaled(sample, scheduler.timesteps[0])

    def _moved(
        self, x: Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any, flagged: list[int]
    ) -> Any:
        """Predictions under moved embeddings for the flagged pictures, which stay moved at all later steps."""
        count = len(x) // 2
        rows = torch.tensor(flagged, device=x.device) + count
        without = output[0][rows - count]
        embeddings = keywords["encoder_hidden_states"]

        def magnitude(moved: Tensor) -> Tensor:
            return self._magnitude(x[rows], without, self._again(x[rows], arguments, keywords, rows, moved))

        run = move_embeddings(embeddings[rows], magnitude, self.guard.threshold, self.iterations, self.learning_rate)
        for row, value in zip(flagged, run.magnitude.tolist(), strict=True):
            self.magnitudes[row] = value
        left = [row for row in flagged if not self.magnitudes[row] <= self.guard.threshold]
        if left:
            self._refuse(left, f"; the embedding was moved {self.iterations} times")
        changed = output[0].clone()
        changed[rows] = self._again(x[rows], arguments, keywords, rows, run.embeddings)
        self.embeddings = embeddings.clone()
        self.embeddings[rows] = run.embeddings
        return (changed, *output[1:])


def holds_several(value: Any) -> bool:
    """Whether tensors in a list or tuple are among what a network is given, which follow from the noise or the prompt."""
    if isinstance(value, dict):
        return any(map(holds_several, value.values()))
    return isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) or holds_several(each) for each in value)


def fresh_noise(x: Tensor, number: int) -> Tensor:
    """Standard normal noise that follows from a noise and a number alone."""
    digest = hashlib.blake2b(x.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
    (generator,) = generators(item_seeds([digest], number))
    return torch.randn(x.shape, generator=generator).to(x)
