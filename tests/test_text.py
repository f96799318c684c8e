"""The text-conditional magnitude against a sampling loop of its own, closed forms and other pipelines."""

import json

import pytest
import torch
from conftest import AUTOENCODER, TEXT, small_pipeline
from diffusers import (
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

from memlib.datasets.prompts import read_prompts
from memlib.detectors import text
from memlib.detectors.text import FirstStep, first_step, lost_without_words, token_significance
from memlib.fields.latents import decode
from memlib.fields.load import load_pipeline
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import cut_parts, generate, shared_noise, trajectory
from memlib.training import text_model

PROMPTS = ["a red apple", "the whale", "a blue tree on a whale"]


def noise(n: int = 2, seed: int = 0) -> torch.Tensor:
    return shared_noise((4, 4, 4), n, seed)


def field_of(pipe: StableDiffusionPipeline, rows: int = 64) -> UNetField:
    return UNetField(pipe.unet, pipe.scheduler, pipe, rows)


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
    """The magnitudes [steps] of one prompt from one noise, by DDIM as it is written in the papers, over sigma."""
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
    start = noise()
    run = trajectory(pipe, PROMPTS, start, sampling_steps=5)
    assert run.value.shape == (3, 2, 5)
    abar = pipe.scheduler.alphas_cumprod[[801, 601, 401, 201, 1]]
    torch.testing.assert_close(run.sigmas, ((1 - abar) / abar).sqrt())
    expected = torch.stack([torch.stack([by_hand(pipe, prompt, n, 5, 7.5) for n in start]) for prompt in PROMPTS])
    torch.testing.assert_close(run.value / run.sigmas, expected, rtol=2e-4, atol=1e-6)


def test_after_the_first_steps_the_pipeline_stops() -> None:
    pipe = small_pipeline()
    whole = trajectory(pipe, PROMPTS, noise(), sampling_steps=10, rows=12)
    seen = Counted(pipe)
    first = trajectory(pipe, PROMPTS, noise(), 2, sampling_steps=10, rows=12)
    torch.testing.assert_close(first.value, whole.value[..., :2])
    torch.testing.assert_close(first.sigmas, whole.sigmas[:2])
    assert seen.items == 3 * 2 * 2 * 2, "conditional and unconditional, 2 noises and 2 steps for each of 3 prompts"
    assert not pipe.unet._forward_hooks, "the hook is gone"
    assert len(pipe("a whale", num_inference_steps=3, output_type="np").images) == 1, "the pipeline samples as before"


@pytest.mark.parametrize("rows", [1, 8, 256])
def test_every_call_of_a_trajectory_has_the_same_number_of_rows(rows: int) -> None:
    pipe = small_pipeline()
    whole = trajectory(pipe, PROMPTS, noise(), sampling_steps=3)
    seen = Counted(pipe)
    found = trajectory(pipe, PROMPTS, noise(), sampling_steps=3, rows=rows)
    calls = {1: 3, 8: 2, 256: 1}[rows] * 3
    assert seen.items == calls * seen.largest
    assert seen.largest == max(rows, 4), "at least a prompt with its two noises, with the prompt and without"
    for part, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_the_first_step_shares_the_unconditional_prediction(rows: int) -> None:
    pipe = small_pipeline()
    expected = trajectory(pipe, PROMPTS, noise(), 1, sampling_steps=10).value[..., 0]
    seen = Counted(pipe)
    torch.testing.assert_close(first_step(field_of(pipe, rows), PROMPTS, noise(), 10), expected, rtol=1e-4, atol=1e-6)
    assert seen.items == 3 * 2 + 2
    assert seen.largest <= rows


def test_noises_depend_on_their_number_and_the_seed_alone() -> None:
    assert torch.equal(noise(5)[:2], noise(2))
    assert not torch.equal(noise(2, 1), noise(2))
    assert not torch.equal(noise(2)[0], noise(2)[1])


@torch.no_grad()
def shifted_metric(
    pipe: StableDiffusionPipeline,
    prompt: str,
    start: torch.Tensor,
    without: torch.Tensor,
    inputs: bool,
    place: int,
    axis: int,
    by: float,
) -> torch.Tensor:
    """The mean magnitude at the first of 50 steps when one number of one token's embedding is moved.

    without: what is predicted there without a prompt.
    """

    def move(_: torch.nn.Module, __: tuple, output: object) -> object:
        hidden = (output if inputs else output[0]).clone()
        hidden[0, place, axis] += by
        return hidden if inputs else (hidden,)

    layer = pipe.text_encoder.get_input_embeddings() if inputs else pipe.text_encoder
    handle = layer.register_forward_hook(move)
    embedding = encode(pipe, prompt)
    handle.remove()
    conditional = pipe.unet(start, 981, embedding.expand(len(start), -1, -1)).sample
    abar = pipe.scheduler.alphas_cumprod[981]
    return ((1 - abar) / abar).sqrt() * (conditional - without).flatten(1).norm(dim=1).mean()


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("rows", [1, pytest.param(1000, marks=pytest.mark.ci)])
def test_token_significance_is_the_gradient_by_finite_differences(inputs: bool, rows: int) -> None:
    pipe = small_pipeline()
    start = noise(3)
    table = token_significance(field_of(pipe, rows), PROMPTS, start, inputs)
    of_one = table[table["prompt"] == 1]
    assert of_one["token"].tolist() == ["the", "whale"]
    without = pipe.unet(start, 981, encode(pipe, "").expand(len(start), -1, -1)).sample
    slopes = [
        (
            shifted_metric(pipe, PROMPTS[1], start, without, inputs, 2, axis, 1e-2)
            - shifted_metric(pipe, PROMPTS[1], start, without, inputs, 2, axis, -1e-2)
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
        abar = self.abar[t.long() if isinstance(t, torch.Tensor) else t].reshape(-1, 1, 1, 1)
        return ((x - abar.sqrt() * self.picture(encoder_hidden_states)) / (1 - abar).sqrt(),)


def unet_length(pipe: StableDiffusionPipeline, unet: PointMassUnet, start: torch.Tensor) -> torch.Tensor:
    return unet(start, 901, encode(pipe, "").expand(len(start), -1, -1))[0].flatten(1).norm(dim=1)


def test_where_every_prompt_stands_for_one_picture_the_magnitude_is_known() -> None:
    pipe = small_pipeline()
    unet = PointMassUnet(pipe)
    pictures = unet.picture(pipe.encode_prompt(["", *PROMPTS], "cpu", 1, False)[0])
    pipe.unet = unet
    abar = unet.abar[[1 + 100 * i for i in reversed(range(10))]]
    expected = (pictures[1:] - pictures[:1]).flatten(1).norm(dim=1)[:, None].expand(3, 10)  # |D_c - D_u| at every level
    found, without, sigmas, _ = trajectory(pipe, PROMPTS, noise(3), sampling_steps=10)
    torch.testing.assert_close(sigmas, ((1 - abar) / abar).sqrt())
    torch.testing.assert_close(without[:, :, 0], unet_length(pipe, unet, noise(3)).expand(3, 3), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected[:, None].expand(3, 3, 10), rtol=1e-3, atol=1e-5)


def test_only_the_token_that_decides_is_significant() -> None:
    pipe = small_pipeline()
    pipe.unet = PointMassUnet(pipe)
    table = token_significance(field_of(pipe), PROMPTS, noise())
    first = ~table["prompt"].duplicated()
    assert (table.loc[first, "significance"] > 0.1).all()
    assert (table.loc[~first, "significance"] == 0).all()


def test_what_is_lost_without_a_word_is_the_difference_of_two_magnitudes() -> None:
    field, prompts = field_of(small_pipeline()), ["a red apple", "whale"]
    table = lost_without_words(field, prompts, noise(3), 10)
    assert table[["prompt", "token"]].to_numpy().tolist() == [[0, "a"], [0, "red"], [0, "apple"], [1, "whale"]]
    sizes = [first_step(field, [words], noise(3), 10).mean() for words in ("red apple", "a apple", "a red")]
    whole = first_step(field, prompts, noise(3), 10).mean(1)
    expected = torch.stack([*(whole[0] - size for size in sizes), whole[1]])  # nothing is left of a single word
    torch.testing.assert_close(torch.tensor(table["significance"].tolist()), expected, rtol=1e-4, atol=1e-6)


def test_generated_pictures_are_the_pipelines_own() -> None:
    pipe = small_pipeline()
    start = noise()
    pictures = generate(pipe, PROMPTS, start, 5, rows=4)
    latents = trajectory(pipe, PROMPTS, start, sampling_steps=5).latents
    torch.testing.assert_close(
        decode(pipe.vae, latents.flatten(0, 1)), pictures.flatten(0, 1).clamp(-1, 1), rtol=1e-4, atol=1e-5
    )
    assert pictures.shape == (3, 2, 3, 16, 16)
    own = pipe(PROMPTS[2], latents=start[1:], num_inference_steps=5, output_type="pt").images
    torch.testing.assert_close(pictures[2, 1], 2 * own[0] - 1, rtol=1e-4, atol=1e-5)
    embeddings = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0][:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(generate(pipe, embeddings, start, 5), pictures, rtol=1e-4, atol=1e-5)


def test_bfloat16_and_long_prompts() -> None:
    pipe = small_pipeline(length=77)
    long = " ".join(["a red apple on a green tree"] * 9)  # 65 tokens
    exact = trajectory(pipe, [long, "a whale"], noise(), 1).value
    rough = trajectory(pipe.to(torch.bfloat16), [long, "a whale"], noise(), 1).value
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.3, atol=1e-3)
    torch.testing.assert_close(
        first_step(field_of(pipe), [long, "a whale"], noise()), exact[..., 0], rtol=0.3, atol=1e-3
    )


def test_between_two_timesteps_the_noise_level_is_interpolated() -> None:
    pipe = small_pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    run = trajectory(pipe, ["a whale"], noise(), sampling_steps=8)
    assert float(pipe.scheduler.timesteps[1]) % 1 > 0.2
    torch.testing.assert_close(run.sigmas, pipe.scheduler.sigmas[:-1], rtol=1e-4, atol=1e-5)


def test_the_first_step_under_another_scheduler_starts_where_that_starts() -> None:
    pipe = small_pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    found = first_step(field_of(pipe), ["a whale", "a red apple"], noise(), 10)
    abar = pipe.scheduler.alphas_cumprod[999]
    with torch.no_grad():
        pair = [pipe.unet(noise(), 999, encode(pipe, words).expand(2, -1, -1)).sample for words in ("a red apple", "")]
    expected = ((1 - abar) / abar).sqrt() * (pair[0] - pair[1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-6)


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
    found = trajectory(xl, PROMPTS, noise(), 1, 10).value[..., 0]
    torch.testing.assert_close(first_step(field_of(xl), PROMPTS, noise(), 10), found, rtol=1e-4, atol=1e-6)
    assert (found > 0).all()
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline has two text encoders"):
        token_significance(field_of(xl), PROMPTS, noise())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_first_step_looked_at_again_gives_the_magnitude_again(kind: str) -> None:
    pipe, start = small_pipeline(kind), noise()
    first = FirstStep(field_of(pipe), PROMPTS, start)
    again = first.magnitude(first.embeddings.repeat_interleave(2, 0)).unflatten(0, (3, 2))
    torch.testing.assert_close(again, first_step(field_of(pipe), PROMPTS, start), rtol=1e-4, atol=1e-6)


def test_a_pipeline_is_loaded_from_its_folder(tmp_path) -> None:
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    again = load_pipeline(tmp_path / "model")
    start = noise()
    torch.testing.assert_close(first_step(field_of(again), PROMPTS, start), first_step(field_of(pipe), PROMPTS, start))
    assert load_pipeline(tmp_path / "model", torch.bfloat16).unet.dtype == torch.bfloat16


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
    start = noise()
    assert (generate(checked, PROMPTS, start, 2) == -1).all(), "black: the checker refuses every picture"
    checked.save_pretrained(tmp_path / "model")
    again = load_pipeline(tmp_path / "model")
    torch.testing.assert_close(generate(again, PROMPTS, start, 2), generate(pipe, PROMPTS, start, 2))


def test_weights_that_must_be_unpickled_are_refused(tmp_path) -> None:
    small_pipeline().save_pretrained(tmp_path / "model", safe_serialization=False)
    with pytest.raises(ValueError, match="model holds no safetensors weights of a model"):
        load_pipeline(tmp_path / "model")


def test_tokens_are_written_as_a_reader_writes_them() -> None:
    tokenizer = text_model.train_tokenizer(["the city of são paulo"], 8)
    pipe = text_model.build_pipeline(text_model.build_autoencoder(16, AUTOENCODER), tokenizer, TEXT)
    table = token_significance(field_of(pipe), ["são paulo city"], noise())
    assert table["token"].tolist() == ["são", "paulo", "city"]


def test_bytes_of_one_character_are_one_token_as_significant_as_the_most_significant_of_them(monkeypatch) -> None:
    tokenizer = text_model.train_tokenizer(["a tree"], 18)
    pipe = text_model.build_pipeline(text_model.build_autoencoder(16, AUTOENCODER), tokenizer, TEXT)
    pieces = tokenizer.tokenize("a é 果 tree 🍎")
    assert pieces[:1] + pieces[6:7] == ["a</w>", "tree</w>"]
    lengths = torch.tensor([[9.0, 1, 2, 5, 3, 4, 0.5, 7, 0.1, 0.2, 0.3, 0.4]])
    monkeypatch.setattr(text, "_gradient_lengths", lambda *_: lengths)
    table = token_significance(field_of(pipe), ["a é 果 tree 🍎"], noise())
    assert table["token"].tolist() == ["a", "é", "果", "tree", "🍎"]
    assert table["significance"].tolist() == pytest.approx([1, 5, 4, 7, 0.4])


def test_bad_input_is_refused(tmp_path) -> None:
    pipe = small_pipeline()
    start = noise()
    for call, message in (
        (lambda: trajectory(pipe, [], start), "the list of prompts is empty"),
        (lambda: first_step(field_of(pipe), "a whale", start), "must be a list of texts"),
        (lambda: trajectory(pipe, PROMPTS, start, guidance=0), "guidance is 0; the magnitude compares"),
        (lambda: trajectory(pipe, PROMPTS, start, guidance=float("nan")), "guidance is nan"),
        (lambda: trajectory(pipe, PROMPTS, start, 51), "the first 51 of 50 steps"),
        (lambda: noise(0), "at least one noise is needed; got 0"),
        (lambda: read_prompts(tmp_path / "none.txt"), "there is no prompt file"),
        (lambda: load_pipeline(tmp_path), "is not a diffusers model; it must hold model_index.json"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    unconditional = DDPMPipeline(pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match="DDPMPipeline has no text_encoder; a prompt needs a text-to-image pipeline"):
        trajectory(unconditional, PROMPTS, start)
    transformer = PixArtAlphaPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match="the transformer UNet2DConditionModel is not known; known are SD3"):
        trajectory(transformer, PROMPTS, start)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="HeunDiscreteScheduler takes 2 evaluations a step"):
        trajectory(pipe, PROMPTS, start)
    pipe = small_pipeline()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="told the guidance scale"):
        trajectory(pipe, PROMPTS, start)
    pipe = small_pipeline()
    with pytest.warns(UserWarning, match=r"only 8 tokens are used; cut: 'a green tree'"):
        first_step(field_of(pipe), ["a big red apple on the a green tree"], start)
    assert cut_parts(pipe, ["a whale", "a big red apple on the a green tree"]) == {
        "a big red apple on the a green tree": "a green tree"
    }


def test_prompt_files(tmp_path) -> None:
    lines, rows, bad = tmp_path / "p.txt", tmp_path / "p.jsonl", tmp_path / "bad.jsonl"
    lines.write_text("a whale\n\n  the tree \n")
    rows.write_text("\n".join(json.dumps({"caption": prompt}) for prompt in PROMPTS))
    bad.write_text('{"caption": "a whale"}\n{"text": "a tree"}\n')
    assert read_prompts(lines) == ["a whale", "the tree"]
    assert read_prompts(rows) == PROMPTS
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2 is not an object with a caption"):
        read_prompts(bad)
    bad.write_text('{"caption": 3}')
    with pytest.raises(ValueError, match="line 1: the caption is not a text"):
        read_prompts(bad)
    bad.write_text("\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl is empty"):
        read_prompts(bad)
