"""The text-conditional magnitude against a sampling loop of its own, closed forms and other pipelines."""

import json

import pytest
import torch
from conftest import AUTOENCODER, TEXT, small_pipeline
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PixArtAlphaPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection

from memlib import text, text_model
from memlib.text_training import decode

PROMPTS = ["a red apple", "the whale", "a blue tree on a whale"]


def noise(pipe: StableDiffusionPipeline, n: int = 2, seed: int = 0) -> torch.Tensor:
    return text.shared_noise(pipe, n, torch.Generator().manual_seed(seed))


class Counted:
    """Items that a pipeline's network has seen, and the most in one call."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.items, self.largest = 0, 0
        pipe.unet.register_forward_pre_hook(self.count)

    def count(self, _: torch.nn.Module, arguments: tuple) -> None:
        self.items += len(arguments[0])
        self.largest = max(self.largest, len(arguments[0]))


def encode(pipe: StableDiffusionPipeline, words: str) -> torch.Tensor:
    tokens = pipe.tokenizer([words], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(tokens)[0]


@torch.no_grad()
def by_hand(
    pipe: StableDiffusionPipeline, prompt: str, start: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """The magnitudes [steps] of one prompt from one noise, by DDIM as it is written in the papers."""
    abar = torch.cat([pipe.scheduler.alphas_cumprod[:1], pipe.scheduler.alphas_cumprod])  # the last step goes to abar_0
    times = [1 + i * (1000 // steps) for i in reversed(range(steps))]
    kind, x, found = pipe.scheduler.config.prediction_type, start[None], []
    for t in times:
        signal, spread = abar[t + 1].sqrt(), (1 - abar[t + 1]).sqrt()
        outputs = [pipe.unet(x, t, encode(pipe, words)).sample for words in ("", prompt)]
        if kind == "v_prediction":
            eps = [signal * v + spread * x for v in outputs]
        elif kind == "sample":
            eps = [(x - signal * clean) / spread for clean in outputs]
        else:
            eps = outputs
        found.append((eps[1] - eps[0]).norm())
        guided = eps[0] + guidance * (eps[1] - eps[0])
        clean = (x - spread * guided) / signal
        before = abar[max(t + 1 - 1000 // steps, 0)]
        x = before.sqrt() * clean + (1 - before).sqrt() * guided
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_magnitude_is_that_of_a_sampler_written_by_hand(kind: str) -> None:
    pipe = small_pipeline(kind)
    start = noise(pipe)
    found = text.magnitudes(pipe, PROMPTS, start, sampling_steps=5).value
    assert found.shape == (3, 2, 5)
    expected = torch.stack([torch.stack([by_hand(pipe, prompt, n, 5, 7.5) for n in start]) for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)


def test_after_the_first_steps_the_pipeline_stops() -> None:
    pipe = small_pipeline()
    whole = text.magnitudes(pipe, PROMPTS, noise(pipe), sampling_steps=10).value
    seen = Counted(pipe)
    first = text.magnitudes(pipe, PROMPTS, noise(pipe), 2, sampling_steps=10).value
    torch.testing.assert_close(first, whole[..., :2])
    assert seen.items == 3 * 2 * 2 * 2, "conditional and unconditional, 2 noises and 2 steps for each of 3 prompts"
    assert not pipe.unet._forward_hooks, "the hook is gone"
    assert len(pipe("a whale", num_inference_steps=3, output_type="np").images) == 1, "the pipeline samples as before"


def test_generations_are_averaged_in_order() -> None:
    values = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    found = text.by_generations(values)
    assert list(found) == [1, 4, 6]
    torch.testing.assert_close(found[1], values[:, 0].mean(1))
    torch.testing.assert_close(found[4], values[:, :4].sum((1, 2)) / 20)
    assert list(text.by_generations(values[:, :1])) == [1]


@pytest.mark.parametrize("max_batch", [1, 5, 1000])
def test_the_first_step_shares_the_unconditional_prediction(max_batch: int) -> None:
    pipe = small_pipeline()
    expected = text.magnitudes(pipe, PROMPTS, noise(pipe), 1, sampling_steps=10).value[..., 0]
    seen = Counted(pipe)
    torch.testing.assert_close(
        text.first_step(pipe, PROMPTS, noise(pipe), 10, max_batch), expected, rtol=1e-5, atol=1e-7
    )
    assert seen.items == 3 * 2 + 2
    assert seen.largest <= max(max_batch, 4), "at least a prompt with all its noises, the first twice"


@torch.no_grad()
def shifted_metric(
    pipe: StableDiffusionPipeline, prompt: str, start: torch.Tensor, inputs: bool, place: int, axis: int, by: float
) -> torch.Tensor:
    """The mean magnitude at the first of 50 steps when one number of one token's embedding is moved."""

    def move(_: torch.nn.Module, __: tuple, output: object) -> object:
        hidden = (output if inputs else output[0]).clone()
        hidden[0, place, axis] += by
        return hidden if inputs else (hidden,)

    layer = pipe.text_encoder.get_input_embeddings() if inputs else pipe.text_encoder
    handle = layer.register_forward_hook(move)
    embedding = encode(pipe, prompt)
    handle.remove()
    conditional, without = (
        pipe.unet(start, 981, e.expand(len(start), -1, -1)).sample for e in (embedding, encode(pipe, ""))
    )
    return (conditional - without).flatten(1).norm(dim=1).mean()


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("max_batch", [1, 1000])
def test_token_significance_is_the_gradient_by_finite_differences(inputs: bool, max_batch: int) -> None:
    pipe = small_pipeline()
    start = noise(pipe, 3)
    table = text.token_significance(pipe, PROMPTS, start, inputs, max_batch=max_batch)
    of_one = table[table["prompt"] == 1]
    assert of_one["token"].tolist() == ["the", "whale"]
    slopes = [
        (
            shifted_metric(pipe, PROMPTS[1], start, inputs, 2, axis, 1e-2)
            - shifted_metric(pipe, PROMPTS[1], start, inputs, 2, axis, -1e-2)
        )
        / 2e-2
        for axis in range(32)
    ]
    assert of_one["significance"].iloc[1] == pytest.approx(float(torch.stack(slopes).norm()), rel=2e-2)


class PointMassUnet(torch.nn.Module):
    """The noise prediction if every prompt stands for one picture, which is a multiple of its first embedding."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        super().__init__()
        self.config, self.abar, self.dtype = pipe.unet.config, pipe.scheduler.alphas_cumprod, torch.float32
        self.device = torch.device("cpu")

    def picture(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings[:, 1, :4, None, None] * torch.ones(1, 1, 4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object) -> tuple:
        abar = self.abar[int(t)]
        return ((x - abar.sqrt() * self.picture(encoder_hidden_states)) / (1 - abar).sqrt(),)


def unet_length(pipe: StableDiffusionPipeline, unet: PointMassUnet, start: torch.Tensor) -> torch.Tensor:
    return unet(start, 901, text.embed(pipe, [""]))[0].flatten(1).norm(dim=1)


def test_where_every_prompt_stands_for_one_picture_the_magnitude_is_known() -> None:
    pipe = small_pipeline()
    unet = PointMassUnet(pipe)
    pictures = unet.picture(pipe.encode_prompt(["", *PROMPTS], "cpu", 1, False)[0])
    pipe.unet = unet
    abar = unet.abar[[1 + 100 * i for i in reversed(range(10))]]
    expected = (pictures[1:] - pictures[:1]).flatten(1).norm(dim=1)[:, None] * (abar / (1 - abar)).sqrt()
    found, without, _ = text.magnitudes(pipe, PROMPTS, noise(pipe, 3), sampling_steps=10)
    torch.testing.assert_close(
        without[:, :, 0], unet_length(pipe, unet, noise(pipe, 3)).expand(3, 3), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found, expected[:, None].expand(3, 3, 10), rtol=1e-3, atol=1e-5)


def test_only_the_token_that_decides_is_significant() -> None:
    pipe = small_pipeline()
    pipe.unet = PointMassUnet(pipe)
    table = text.token_significance(pipe, PROMPTS, noise(pipe))
    first = ~table["prompt"].duplicated()
    assert (table.loc[first, "significance"] > 0.1).all()
    assert (table.loc[~first, "significance"] == 0).all()


def test_generated_pictures_are_the_pipelines_own() -> None:
    pipe = small_pipeline()
    start = noise(pipe)
    pictures = text.generate(pipe, PROMPTS, start, 5, max_batch=4)
    latents = text.magnitudes(pipe, PROMPTS, start, sampling_steps=5).latents
    torch.testing.assert_close(
        decode(pipe.vae, latents.flatten(0, 1)), pictures.flatten(0, 1).clamp(-1, 1), rtol=1e-4, atol=1e-5
    )
    assert pictures.shape == (3, 2, 3, 16, 16)
    own = pipe(PROMPTS[2], latents=start[1:], num_inference_steps=5, output_type="pt").images
    torch.testing.assert_close(pictures[2, 1], 2 * own[0] - 1, rtol=1e-4, atol=1e-5)
    embeddings = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0][:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(text.generate(pipe, embeddings, start, 5), pictures, rtol=1e-4, atol=1e-5)


def test_other_schedulers_and_bfloat16_and_long_prompts() -> None:
    pipe = small_pipeline(length=77)
    long = " ".join(["a red apple on a green tree"] * 9)  # 65 tokens
    exact = text.magnitudes(pipe, [long, "a whale"], noise(pipe), 1).value
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    euler = text.first_step(pipe, [long, "a whale"], noise(pipe) / pipe.scheduler.init_noise_sigma)
    t = pipe.scheduler.timesteps[0]
    x = noise(pipe) / (1 + pipe.scheduler.sigmas[0] ** 2).sqrt()  # as Euler's steps are scaled
    with torch.no_grad():
        pair = [pipe.unet(x, t, encode(pipe, words).expand(2, -1, -1)).sample for words in ("a whale", "")]
    torch.testing.assert_close(euler[1], (pair[0] - pair[1]).flatten(1).norm(dim=1), rtol=1e-3, atol=1e-6)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    half = text.magnitudes(pipe.to(torch.bfloat16), [long, "a whale"], noise(pipe), 1).value
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.3, atol=1e-3)


def small_xl() -> StableDiffusionXLPipeline:
    pipe = small_pipeline(length=77)
    settings = pipe.text_encoder.config.to_dict() | {"projection_dim": 32}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
    unet = UNet2DConditionModel.from_config(
        dict(pipe.unet.config),
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        pipe.vae, pipe.text_encoder, second, pipe.tokenizer, pipe.tokenizer, unet, pipe.scheduler, add_watermarker=False
    )


def test_stable_diffusion_xl() -> None:
    xl = small_xl()
    found = text.magnitudes(xl, PROMPTS, noise(xl), 1, 10).value[..., 0]
    torch.testing.assert_close(text.first_step(xl, PROMPTS, noise(xl), 10), found, rtol=1e-5, atol=1e-7)
    assert (found > 0).all()
    assert (text.token_significance(xl, PROMPTS, noise(xl))["significance"] > 0).all()
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline has two text encoders"):
        text.token_significance(xl, PROMPTS, noise(xl), inputs=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_first_call_made_again_gives_the_magnitude_again(kind: str) -> None:
    for pipe in (small_pipeline(kind), small_xl()):
        start = noise(pipe)
        call = text.first_call(pipe, PROMPTS, start)
        again = call.magnitude(call.keywords["encoder_hidden_states"]).unflatten(0, (3, 2))
        torch.testing.assert_close(again, text.first_step(pipe, PROMPTS, start), rtol=1e-4, atol=1e-7)


def test_a_pipeline_is_loaded_from_its_folder(tmp_path) -> None:
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    again = text.load_pipeline(tmp_path / "model")
    start = noise(pipe)
    torch.testing.assert_close(text.first_step(again, PROMPTS, start), text.first_step(pipe, PROMPTS, start))
    assert text.load_pipeline(tmp_path / "model", torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_safety_checker_does_not_blacken_what_is_measured(tmp_path) -> None:
    pipe = small_pipeline()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-10.0)  # everything is a concept
    checked = StableDiffusionPipeline(
        pipe.vae,
        pipe.text_encoder,
        pipe.tokenizer,
        pipe.unet,
        pipe.scheduler,
        checker,
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
    start = noise(pipe)
    assert (text.generate(checked, PROMPTS, start, 2) == -1).all(), "black: the checker refuses every picture"
    checked.save_pretrained(tmp_path / "model")
    again = text.load_pipeline(tmp_path / "model")
    torch.testing.assert_close(text.generate(again, PROMPTS, start, 2), text.generate(pipe, PROMPTS, start, 2))


def test_weights_that_must_be_unpickled_are_refused(tmp_path) -> None:
    small_pipeline().save_pretrained(tmp_path / "model", safe_serialization=False)
    with pytest.raises(ValueError, match="model is no folder of a pipeline with safetensors weights"):
        text.load_pipeline(tmp_path / "model")


def test_tokens_are_written_as_a_reader_writes_them() -> None:
    tokenizer = text_model.train_tokenizer(["the city of são paulo"], 8)
    pipe = text_model.build_pipeline(text_model.build_autoencoder(16, AUTOENCODER), tokenizer, TEXT)
    table = text.token_significance(pipe, ["são paulo city"], noise(pipe))
    assert table["token"].tolist() == ["são", "paulo", "city"]


def test_bad_input_is_refused(tmp_path) -> None:
    pipe = small_pipeline()
    start = noise(pipe)
    for call, message in (
        (lambda: text.magnitudes(pipe, [], start), "the list of prompts is empty"),
        (lambda: text.first_step(pipe, "a whale", start), "must be a list of texts"),
        (lambda: text.magnitudes(pipe, PROMPTS, start, guidance=0), "guidance is 0; the magnitude compares"),
        (lambda: text.magnitudes(pipe, PROMPTS, start, guidance=float("nan")), "guidance is nan"),
        (lambda: text.magnitudes(pipe, PROMPTS, start, 51), "the first 51 of 50 steps"),
        (lambda: noise(pipe, 0), "at least one generation is needed; got 0"),
        (lambda: text.read_prompts(tmp_path / "none.txt"), "there is no prompt file"),
        (lambda: text.load_pipeline(tmp_path), "is not a diffusers pipeline; it must hold model_index.json"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    unconditional = DDPMPipeline(pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match="DDPMPipeline has no text_encoder; supported are text-to-image"):
        text.magnitudes(unconditional, PROMPTS, start)
    transformer = PixArtAlphaPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match="PixArtAlphaPipeline has a transformer instead of a U-Net"):
        text.magnitudes(transformer, PROMPTS, start)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="HeunDiscreteScheduler takes 2 evaluations a step"):
        text.magnitudes(pipe, PROMPTS, start)
    pipe = small_pipeline()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="told the guidance scale"):
        text.magnitudes(pipe, PROMPTS, start)
    pipe = small_pipeline()
    with pytest.warns(UserWarning, match=r"only 8 tokens are used; cut: 'a green tree'"):
        text.first_step(pipe, ["a big red apple on the a green tree"], start)


def test_prompt_files(tmp_path) -> None:
    lines, rows, bad = tmp_path / "p.txt", tmp_path / "p.jsonl", tmp_path / "bad.jsonl"
    lines.write_text("a whale\n\n  the tree \n")
    rows.write_text("\n".join(json.dumps({"caption": prompt}) for prompt in PROMPTS))
    bad.write_text('{"caption": "a whale"}\n{"text": "a tree"}\n')
    assert text.read_prompts(lines) == ["a whale", "the tree"]
    assert text.read_prompts(rows) == PROMPTS
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2 is not an object with a caption"):
        text.read_prompts(bad)
    bad.write_text('{"caption": 3}')
    with pytest.raises(ValueError, match="line 1: the caption is not a text"):
        text.read_prompts(bad)
    bad.write_text("\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl is empty"):
        text.read_prompts(bad)
