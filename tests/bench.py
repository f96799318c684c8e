"""What things cost, as ratios within one run: `make bench`."""

import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.p_laplacian import p_laplacian
from memlib.detectors.volume import divergence
from memlib.fields.unet import UNetField
from memlib.mitigation.guard import calibrate
from memlib.sampling.pipeline import quiet
from memlib.score import one_thread, score
from memlib.tensors import to_float
from memlib.training import image_model, loop, text_model
from memlib.training.settings import AutoencoderConfig, TextConfig, TrainConfig

CONFIG = TrainConfig(**yaml.safe_load(Path("params.yaml").read_text())["train"])
PICTURES = torch.randint(0, 256, (256, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def training_seconds(config: TrainConfig, steps: int) -> float:
    """Seconds a step of memlib's training, by the difference of a long and a short run."""
    times = []
    for count in (5, 5 + steps):
        AcceleratorState._reset_state(True)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = replace(config, steps=count, warmup_steps=0, checkpoint_every=10**6)
            image_model.train(
                PICTURES, torch.ones(256, dtype=torch.long), run, Path(folder) / "model", Path(folder) / "checkpoint.pt"
            )
            times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / steps


def forward_backward_seconds(compiled: bool) -> float:
    """Seconds of one forward and backward pass of a training batch at the study's precision."""
    network = image_model.build_network(3, 16, CONFIG)
    precision = loop.resolve_precision(CONFIG.precision, torch.device("cpu"))
    model = torch.compile(network) if compiled else network
    x, t = torch.randn(CONFIG.batch, 3, 16, 16), torch.randint(0, 1000, (CONFIG.batch,))

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(x, t).sample.float().square().mean()
        loss.backward()

    return seconds(once)


def plain_loop_seconds(steps: int) -> float:
    """Seconds a step of the plain loop of diffusers' unconditional example: data loader, float32, one step after the other."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="no")
    model, scheduler = image_model.build_network(3, 16, CONFIG), DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=5, num_training_steps=steps)
    ema = EMAModel(model.parameters())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(to_float(PICTURES)), batch_size=CONFIG.batch, shuffle=True
    )
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    done, started = 0, 0.0
    while True:
        for (clean,) in loader:
            if done == 5:
                started = time.perf_counter()
            if done == 5 + steps:
                return (time.perf_counter() - started) / steps
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
            loss = F.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            done += 1


def text_to_image() -> UNetField:
    """The study's text-to-image model, untrained."""
    parameters = yaml.safe_load(Path("params.yaml").read_text())
    vae = text_model.build_autoencoder(parameters["drawings"]["size"], AutoencoderConfig(**parameters["autoencoder"]))
    config = TextConfig(**parameters["text"])
    pipe: StableDiffusionPipeline = text_model.build_pipeline(
        vae, text_model.train_tokenizer(["one red apple"], config.length), config
    )
    return UNetField(pipe.unet, pipe.scheduler, pipe)


def scoring(field: UNetField, items: Items) -> None:
    """Tables of the main detectors: network evaluations a second against bare forward passes in calls of the same size."""
    x = items.pictures
    bare = seconds(lambda: [field(part, 0.3) for part in x.split(field.rows)], 3) / len(x)
    derivative = seconds(lambda: divergence(field, x, 0.3, 1, items.seeds), 3) / len(x)
    print(f"a divergence by one direction takes {derivative / bare:.1f} times a forward pass")
    for name, setting, cost in (
        ("loss", {"sigma": 0.2, "draws": [4]}, 4 * bare),
        ("flux", {"sigma": 0.2, "p": [1.0], "directions": 4}, 4 * bare),
        ("growth", {"sigma_min": 0.02, "steps": 2, "directions": 1}, 4 * bare + 3 * derivative),
    ):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "table.parquet"
            took = seconds(lambda n=name, s=setting, o=output: score(field, items, find(n), [s], o, replace=True), 3)
        print(
            f"memlib score, {name}, {len(x)} pictures: {len(x) / took:.0f} a second, "
            f"{cost * len(x) / took:.0%} of the speed of its bare network evaluations"
        )


def guarded(pipe: StableDiffusionPipeline, steps: int = 25) -> float:
    """Seconds of a call of a pipeline under a guard over those without, the median of pairs that take turns."""
    call = {"num_inference_steps": steps, "guidance_scale": 3.0}
    guard = calibrate(pipe, ["one red apple", "a red one"], 0.5, **call)

    def timed(watch: AbstractContextManager) -> float:
        started = time.perf_counter()
        with watch:
            pipe(prompt=["one apple"] * 8, output_type="latent", **call)
        return time.perf_counter() - started

    with quiet(pipe), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        timed(nullcontext())
        pairs = [(timed(guard.on(pipe, "warn")), timed(nullcontext())) for _ in range(9)]
    return statistics.median(watched / alone for watched, alone in pairs)


@torch.no_grad()
def main() -> None:
    field = UNetField(image_model.build_network(3, 16, CONFIG), DDPMScheduler(1000))
    items = Items([str(number) for number in range(256)], pictures=to_float(PICTURES))
    with one_thread():  # as `score` computes, so that the calls compared are alike
        scoring(field, items)
    x, seeds = items.pictures[:64], items.seeds[:64]
    published = seconds(lambda: p_laplacian(field, x[:1], 0.3, [1.0], 128, seeds[:1], "flux", None, "independent"))
    for name, arguments in {"16 antithetic directions": (16, seeds, "flux"), "2 derivatives": (2, seeds)}.items():
        ratio = 64 * published / seconds(lambda a=arguments: p_laplacian(field, x, 0.3, [1.0], *a))
        print(f"1-Laplacian, 64 pictures with {name}: {ratio:.1f} times the throughput of 128 directions one by one")
    prompts = Items([f"one red apple {number}" for number in range(256)], prompts=["one red apple"] * 256)
    text = text_to_image()
    first, whole = (
        seconds(lambda n=name, s=setting: find(n).score(text, prompts, **s), 3)
        for name, setting in (
            ("magnitude", {"noises": 4}),
            ("sampled_magnitude", {"noises": 4, "guidance": 3.0, "steps": 1}),
        )
    )
    print(
        f"magnitudes at the first step, unconditional prediction once: {whole / first:.2f} times as fast as twice each"
    )
    print(f"a call of the text-to-image pipeline under a guard takes {guarded(text.pipe):.3f} times as long as without")
    with torch.enable_grad():
        steps = 30
        plain = plain_loop_seconds(steps)
        variants = {"float32": replace(CONFIG, precision="no"), f"precision {CONFIG.precision}, the study's": CONFIG}
        for name, config in variants.items():
            ratio = plain / training_seconds(config, steps)
            print(f"training, {name}: {ratio:.2f} times the steps per second of the plain diffusers loop")
        if shutil.which("c++") or torch.cuda.is_available():
            ratio = forward_backward_seconds(compiled=False) / forward_backward_seconds(compiled=True)
            print(
                f"forward and backward pass with torch.compile: {ratio:.2f} times as fast as without, after it has compiled"
            )


if __name__ == "__main__":
    main()
