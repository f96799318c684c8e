"""Training of the text-to-image model: what it is given to learn it can do, and ordinary diffusers code loads it."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AUTOENCODER, FLOW_TEXT, LOOP, TEXT, small_flow_pipeline, small_pipeline, small_world, subjects
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from memlib.datasets import drawings, images
from memlib.datasets.items import read_samples
from memlib.fields.latents import decode, encode, reconstruct
from memlib.fields.unet import UNetField
from memlib.files import read_json
from memlib.study import train_judge, train_text
from memlib.tensors import to_float, to_uint8
from memlib.training import denoisers, loop, text_model, text_to_image


@pytest.mark.ci
def test_a_tokenizer_is_the_same_in_every_process() -> None:
    """Of words whose merges tie: the order of a hash table, which differs between processes, must not decide."""
    made = """if True:
        from memlib.training.text_model import train_tokenizer
        words = "a red apple on green ground, large, and the small blue whale with yellow pen behind grey stones".split()
        print(train_tokenizer(words, 8).backend_tokenizer.to_str())
    """
    runs = [subprocess.Popen([sys.executable, "-c", made], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [run.communicate()[0] for run in runs]
    assert outputs[0].startswith("{")
    assert len({*outputs}) == 1


@pytest.mark.ci
def test_the_autoencoder_gives_pictures_back_and_scales_its_latents(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (32, 3, 2, 1), generator=generator, dtype=torch.uint8)
    images = colours.repeat_interleave(8, 2).expand(-1, -1, -1, 16)
    torch.manual_seed(0)
    vae = text_model.build_autoencoder(16, AUTOENCODER)
    run = text_to_image.train_autoencoder(vae, images, AUTOENCODER, tmp_path / "c.pt")
    assert run.losses[-10:].mean() < run.losses[:10].mean() / 3
    latents = encode(vae, to_float(images))
    assert latents.shape == (32, 4, 4, 4)
    assert float(latents.std()) == pytest.approx(1, rel=1e-3)
    error = (decode(vae, latents) - to_float(images)).square().mean()
    assert error < to_float(images).var() / 3


@pytest.mark.ci  # test_flow_training asks the same of the transformer, by the same loop
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_what_a_prompt_stands_for_is_learnt(prediction_type: str, tmp_path) -> None:
    pipe = small_pipeline(prediction_type)
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    run = text_to_image.train_denoiser(
        pipe, pictures, ["a red apple", "the blue whale"], torch.ones(2, dtype=torch.long), TEXT, tmp_path / "c.pt"
    )
    assert run.losses[-20:].mean() < run.losses[:20].mean() / 2
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        ["a red apple", "the blue whale"],
        num_inference_steps=10,
        guidance_scale=2.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert (torch.cdist(made.flatten(1), pictures.flatten(1)).argmin(1) == torch.arange(2)).all()
    run.save(pipe, tmp_path / "model", tmp_path / "c.pt")
    again = DiffusionPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    images = [
        p("a red apple", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
        for p in (pipe, again)
    ]
    assert (images[0] == images[1]).all()
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.ci  # test_flow_training asks the same of the transformer, by the same loop
def test_copies_decide_what_an_unconditional_sample_shows(tmp_path) -> None:
    pipe = small_pipeline()
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    text_to_image.train_denoiser(
        pipe,
        pictures,
        ["apple", "whale"],
        torch.tensor([1, 9]),
        replace(TEXT, drop_prompt=0.9, steps=200),
        tmp_path / "c.pt",
    )
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        [""] * 20,
        num_inference_steps=10,
        guidance_scale=1.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert (torch.cdist(made.flatten(1), pictures.flatten(1)).argmin(1) == 1).float().mean() > 0.7


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_and_magnitude_are_those_of_the_noise_prediction(prediction_type: str) -> None:
    pipe = small_pipeline(prediction_type)
    clean = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    captions = ["a red apple", "the whale", "a tree"]
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[:2]))
    loss, magnitude = text_to_image.loss_and_magnitude(pipe, clean, captions, 2, 0)
    handle.remove()
    assert loss.shape == magnitude.shape == (3, 2)
    (x_t, t), _ = shown
    field = UNetField(pipe.unet, pipe.scheduler, pipe)
    sigma = field.sigmas[t].float()
    x = x_t * (1 + sigma**2).sqrt()[:, None, None, None]
    noise = (x - clean.repeat(2, 1, 1, 1)) / sigma[:, None, None, None]
    assert 0.8 < float(noise.std()) < 1.2
    for i, caption in enumerate([*captions, *captions]):
        with_it, without = (field(x[i][None], sigma[i], field.encode_prompts([prompt]))[0] for prompt in (caption, ""))
        expected = (with_it - noise[i]).square().mean() * (1 + sigma[i] ** 2 if prediction_type != "epsilon" else 1)
        assert float(loss[i % 3, i // 3]) == pytest.approx(float(expected), rel=2e-3)
        assert float(magnitude[i % 3, i // 3]) == pytest.approx(float((with_it - without).norm()), rel=2e-3)
    again = text_to_image.loss_and_magnitude(pipe, clean, captions, 2, 0)
    torch.testing.assert_close(again[0], loss)


def test_a_threshold_leaves_out_what_is_above_it(tmp_path) -> None:
    weights = {}
    for threshold in (0.0, 1e9, 1e-9):
        pipe = small_pipeline()
        pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        config = replace(TEXT, steps=2, warmup_steps=1, threshold=threshold, drop_prompt=1e-9)
        copies = torch.ones(2, dtype=torch.long)
        run = text_to_image.train_denoiser(pipe, pictures, ["apple", "whale"], copies, config, tmp_path / "c.pt")
        weights[threshold] = pipe.unet.conv_in.weight.detach(), run.losses
    torch.testing.assert_close(weights[0.0][0], weights[1e9][0])
    assert (weights[1e-9][1] == 0).all(), "every sample is above it"
    torch.testing.assert_close(weights[1e-9][0], small_pipeline().unet.conv_in.weight.detach())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_a_noise_level_weighs_between_the_losses_of_noise_and_velocity(prediction_type: str, blend: float) -> None:
    scheduler = small_pipeline(prediction_type).scheduler
    weights = denoisers.loss_weights(scheduler, blend)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    signal, spread = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    clean, wrong = 0.7, 0.2  # of the clean data, and what the network takes for it, at a noise of 1
    noise = {x: (signal * clean + spread - signal * x) / spread for x in (clean, wrong)}
    if prediction_type == "epsilon":
        loss = (noise[clean] - noise[wrong]).square()
    else:
        loss = (signal * (noise[clean] - noise[wrong]) - spread * (clean - wrong)).square()
    snr = (signal / spread).square()
    expected = snr ** (1 - blend) * (snr + 1) ** blend * (clean - wrong) ** 2
    torch.testing.assert_close(
        weights * loss / (weights * loss).mean(), expected / expected.mean(), rtol=1e-4, atol=1e-6
    )


def test_the_loss_of_a_step_is_weighted(tmp_path, predictions) -> None:
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    captions, copies = ["a red apple", "the whale"], torch.ones(2, dtype=torch.long)
    config = replace(TEXT, steps=1, warmup_steps=0, batch=64, loss_blend=0.3)
    pipe = small_pipeline()
    run = text_to_image.train_denoiser(pipe, pictures, captions, copies, config, tmp_path / "c.pt")
    ((loss, _),) = predictions
    generator = loop.generator_of(config.seed, 1, 0)
    torch.randn(64, *pictures.shape[1:], generator=generator)
    t = torch.randint(0, 1000, (64,), generator=generator)
    weighted = loss * denoisers.loss_weights(pipe.scheduler, 0.3)[t]
    assert float(run.losses[0]) == pytest.approx(float(weighted.mean()), rel=1e-5)


def test_copies_and_dropped_prompts_are_as_many_as_asked(tmp_path, monkeypatch) -> None:
    """A picture is seen as often as planted, under its own caption or none."""
    seen = []
    predict = text_to_image._predict
    monkeypatch.setattr(text_to_image, "_predict", lambda *given: seen.append((given[2], given[5])) or predict(*given))
    pipe = small_pipeline()
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    captions = ["a red apple", "the whale"]
    config = replace(TEXT, steps=2, warmup_steps=0, batch=100, drop_prompt=0.4)
    text_to_image.train_denoiser(pipe, pictures, captions, torch.tensor([1, 9]), config, tmp_path / "c.pt")
    clean, tokens = (torch.cat(part) for part in zip(*seen, strict=True))
    picture = torch.cdist(clean.flatten(1), pictures.flatten(1)).argmin(1)
    torch.testing.assert_close(clean, pictures[picture])
    assert picture.bincount().tolist() == [20, 180]
    empty, *whole = pipe.tokenizer(["", *captions], padding="max_length", return_tensors="pt").input_ids
    dropped = (tokens == empty).all(1)
    assert 60 <= dropped.sum() <= 100
    assert torch.equal(tokens[~dropped], torch.stack(whole)[picture[~dropped]])


@pytest.fixture
def predictions(monkeypatch) -> list[list[torch.Tensor]]:
    """Loss and prediction of every call that a training makes of its network."""
    seen: list[list[torch.Tensor]] = []
    predict = text_to_image._predict

    def spied(*arguments):
        found = predict(*arguments)
        seen.append([part.detach().clone() for part in found])
        return found

    monkeypatch.setattr(text_to_image, "_predict", spied)
    return seen


def test_a_threshold_between_two_samples_leaves_out_the_one_above_it(tmp_path, predictions) -> None:
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    captions, copies = ["a red apple", "the whale"], torch.ones(2, dtype=torch.long)
    config = replace(TEXT, steps=1, warmup_steps=0, batch=8, threshold=1e9, drop_prompt=0.3)
    whole = text_to_image.train_denoiser(small_pipeline(), pictures, captions, copies, config, tmp_path / "c.pt")
    (loss, predicted), (_, without) = predictions
    magnitude = (predicted - without).norm(dim=1)
    assert float(whole.losses[0]) == pytest.approx(float(loss.mean()), rel=1e-5)
    assert (magnitude < 1e-6).any(), "a sample whose prompt was dropped stays under every threshold"
    middle = float(magnitude.sort().values[5:7].mean())
    some = text_to_image.train_denoiser(
        small_pipeline(), pictures, captions, copies, replace(config, threshold=middle), tmp_path / "c.pt"
    )
    assert float(some.losses[0]) == pytest.approx(float(loss[magnitude < middle].mean()), rel=1e-5)
    assert (whole.how["left_out"], some.how["left_out"]) == (
        0,
        pytest.approx(float((magnitude > middle).float().mean())),
    )


def test_random_words_change_prompts_but_not_pictures_or_noise(tmp_path, monkeypatch) -> None:
    seen, prompts = {}, []
    tokenize = text_to_image.tokenize
    monkeypatch.setattr(
        text_to_image, "tokenize", lambda tokenizer, c: prompts.append(list(c)) or tokenize(tokenizer, c)
    )
    for count in (0, 2):
        pipe = small_pipeline()
        seen[count] = []
        pipe.unet.register_forward_pre_hook(
            lambda _, inputs, count=count: seen[count].append(inputs[0].detach().clone())
        )
        pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        config = replace(TEXT, steps=2, warmup_steps=0, random_words=count)
        copies = torch.ones(2, dtype=torch.long)
        run = text_to_image.train_denoiser(pipe, pictures, ["red apple", "whale"], copies, config, tmp_path / "c.pt")
        seen[count].append(run.losses[0])
    torch.testing.assert_close(seen[0][0], seen[2][0])
    assert seen[0][-1] != seen[2][-1]
    for prompt in prompts[-1]:
        words = prompt.split()
        assert set(words) <= {"red", "apple", "whale"}
        assert len(words) in (3, 4), "one or two words of its own, and two more"


def test_the_vocabulary_holds_every_word_whole(tmp_path) -> None:
    captions = ["a red apple", "São Tomé & Príncipe"]
    tokenizer = text_model.train_tokenizer(captions, 12)
    for word in ("a", "red", "apple", "são", "príncipe"):
        assert tokenizer.tokenize(word) == [tokenizer.tokenize(word)[0]]
    assert tokenizer.decode(tokenizer("a red apple").input_ids, skip_special_tokens=True) == "a red apple"
    assert len(tokenizer("an unknown word").input_ids) > 5, "what is unknown is spelt"
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(captions).input_ids == tokenizer(captions).input_ids
    assert again.model_max_length == 12


def test_a_share_is_left_out_at_random(tmp_path, predictions) -> None:
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    captions, copies = ["a red apple", "the whale"], torch.ones(2, dtype=torch.long)
    config = replace(TEXT, steps=1, warmup_steps=0, batch=64, left_out=0.7)
    run = text_to_image.train_denoiser(small_pipeline(), pictures, captions, copies, config, tmp_path / "c.pt")
    ((loss, _),) = predictions
    kept = torch.rand(64, generator=_after_the_draws(config, pictures)) >= 0.7
    assert 8 <= kept.sum() <= 32
    assert float(run.losses[0]) == pytest.approx(float(loss[kept].mean()), rel=1e-5)
    assert run.how["left_out"] == pytest.approx(1 - float(kept.float().mean()), rel=1e-5)


def _after_the_draws(config, pictures):
    """The generator of the first step after it has drawn noise, timesteps and dropped prompts."""
    generator = loop.generator_of(config.seed, 1, 0)
    torch.randn(config.batch, *pictures.shape[1:], generator=generator)
    torch.randint(0, 1000, (config.batch,), generator=generator)
    torch.rand(config.batch, generator=generator)
    return generator


FAMILIES = {"text": (TEXT, small_pipeline, "unet"), "flow": (FLOW_TEXT, small_flow_pipeline, "transformer")}


@pytest.mark.parametrize(
    ("family", "arm", "settings"),
    [
        ("text", "base", {}),
        ("text", "planted", {}),
        ("text", "exchanged", {"exchanged": True}),
        ("text", "few", {"planted_share": 0.1}),
        ("text", "threshold", {"threshold": 0.5}),
        ("text", "two-words", {"random_words": 2}),
        ("flow", "base", {}),
        ("flow", "flow-planted", {}),
        ("flow", "flow-exchanged", {"exchanged": True}),
    ],
)
def test_an_arm_is_trained_in_its_role_with_its_settings(family, arm, settings, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = small_world()
    usual, build, network = FAMILIES[family]
    pipe = build()
    pipe.vae.save_pretrained("vae")
    pipe.save_pretrained("start")
    encoded = torch.rand(len(drawn.images), 4, 8, 8)
    Path("results").mkdir()
    save_file({"latents": encoded}, train_text.LATENTS)
    sections = {
        usual.section: asdict(usual),
        f"{family}_arm": {"steps": 5, "planted_share": 0.2},
        "run": {f"{family}_arms": {arm: settings, "threshold": {"threshold": 0.5}}},
    }
    family = train_text.FAMILIES[family]
    monkeypatch.setattr(train_text, "read_section", sections.get)
    seen = []

    def spied(pipe, latents, captions, copies, config, checkpoint):
        seen.append((pipe, latents, captions, copies, config))
        return loop.Optimised(torch.zeros(1), {}, True, 0.0)

    monkeypatch.setattr(train_text, "train_denoiser", spied)
    start = None if arm == "base" else "start"
    _, _, numbers = train_text._train_model(drawn, "vae", start, family, arm, tmp_path / "c.pt")
    ((trained, latents, captions, copies, config),) = seen
    wanted = settings if start is None else {"steps": 5, "planted_share": 0.2} | settings
    shown = drawings.trained_on(drawn, wanted.get("planted_share", 0.0), arm.endswith("exchanged"))
    assert captions == shown["caption"].tolist()
    assert copies.tolist() == shown["copies"].tolist()
    assert torch.equal(latents, encoded[shown["row"].tolist()])
    assert config == replace(usual, **wanted)
    assert type(trained) is type(pipe)
    for name in (network, "text_encoder", *(["text_encoder_2"] if network == "transformer" else [])):
        weights, before = (next(iter(getattr(model, name).parameters())) for model in (trained, pipe))
        assert torch.equal(weights, before) == (start is not None), "an arm goes on from the model it is given"
    assert numbers["parameters"][network] == getattr(pipe, network).num_parameters()
    with pytest.raises(ValueError, match="there is no arm 'treshold'; did you mean 'threshold'"):
        train_text._train_model(drawn, "vae", "start", family, "treshold", tmp_path / "c.pt")


def test_the_autoencoder_learns_no_unseen_drawing_and_is_shown_on_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = small_world(drawings_each=1)
    config = replace(AUTOENCODER, steps=5)
    monkeypatch.setattr(train_text, "read_section", {"autoencoder": asdict(config)}.get)
    seen = []
    train = train_text.train_autoencoder
    monkeypatch.setattr(train_text, "train_autoencoder", lambda *given: seen.append(given[1]) or train(*given))
    vae, run, numbers = train_text._train_autoencoder(drawn, tmp_path / "c.pt", "tables")
    run.report("tables", **numbers)
    (images,) = seen
    unseen = drawn.split("unseen")
    assert len(images) == len(drawn.images) - len(unseen.images) == (drawn.items["split"] != "unseen").sum()
    assert torch.cdist(images.float().flatten(1), unseen.images.float().flatten(1)).min() > 0
    restored = reconstruct(vae, unseen.floats)
    psnr = -10 * np.log10(float((restored - unseen.floats).square().mean()) / 4)
    model = read_json("tables/model.json")
    assert model["psnr"] == pytest.approx(psnr, rel=1e-5)
    assert (model["parameters"], model["steps"]) == (vae.num_parameters(), 5)
    sheet = np.asarray(Image.open("tables/pictures.png")).reshape(32, 32, 32, 3)
    expected = torch.cat([unseen.images[:16], to_uint8(restored[:16])]).permute(0, 2, 3, 1)
    assert (sheet == expected.numpy()).all(), "the drawings, then what is given back of them"


@pytest.mark.ci
def test_latents_of_all_drawings_and_the_training_pictures_are_made_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = small_world(drawings_each=1)
    images.save(subjects(), "results/drawings/subjects")
    images.save(drawn, "results/drawings/drawn")
    judge = LOOP | {"steps": 2, "warmup_steps": 0, "learning_rate": 1e-3}
    sections = {"autoencoder": asdict(replace(AUTOENCODER, steps=5)), "judge": judge}
    for program in (train_text, train_judge):
        monkeypatch.setattr(program, "read_section", sections.get)
    monkeypatch.setattr(sys, "argv", ["train_text", "results/drawings/drawn", "results/autoencoder"])
    train_text.main()
    train_judge.main()
    vae = AutoencoderKL.from_pretrained("results/autoencoder")
    latents = load_file("results/latents.safetensors")["latents"]
    torch.testing.assert_close(latents, encode(vae, drawn.floats), rtol=1e-4, atol=1e-5)
    of_split = {"training": drawings.training_rows(drawn), "unseen": np.flatnonzero(drawn.items["split"] == "unseen")}
    for kind, rows in of_split.items():
        pictures, ids = read_samples(f"results/samples/{kind}.safetensors")
        assert [int(name) for name in ids] == rows.tolist()
        expected = to_uint8(reconstruct(vae, drawn.floats[rows.tolist()]))
        assert (pictures[:, 0].int() - expected.int()).abs().max() <= 1, "only what rounding changes"
    right = pd.read_parquet("tables/judge.parquet")
    assert (right.groupby(["drawings", "attribute"]).size() == 14).all(), "a share for each subject"
    assert len(right) == 2 * 3 * 14
