"""Training of the text-to-image model: what it is given to learn it can do, and ordinary diffusers code loads it."""

from dataclasses import replace

import pytest
import torch
from conftest import AUTOENCODER, TEXT, small_pipeline
from diffusers import DiffusionPipeline

from memlib import text_model, text_training
from memlib.data import to_float


def test_the_autoencoder_gives_pictures_back_and_scales_its_latents(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (32, 3, 2, 1), generator=generator, dtype=torch.uint8)
    images = colours.repeat_interleave(8, 2).expand(-1, -1, -1, 16)
    torch.manual_seed(0)
    vae = text_model.build_autoencoder(16, AUTOENCODER)
    run = text_training.train_autoencoder(vae, images, AUTOENCODER, tmp_path / "c.pt")
    assert run.losses[-10:].mean() < run.losses[:10].mean() / 3
    latents = text_training.encode(vae, images)
    assert latents.shape == (32, 4, 4, 4)
    assert float(latents.std()) == pytest.approx(1, rel=1e-3)
    error = (text_training.decode(vae, latents) - to_float(images)).square().mean()
    assert error < to_float(images).var() / 3


def test_what_a_prompt_stands_for_is_learnt(tmp_path) -> None:
    pipe = small_pipeline()
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    run = text_training.train_denoiser(
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


def test_copies_decide_what_an_unconditional_sample_shows(tmp_path) -> None:
    pipe = small_pipeline()
    pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    text_training.train_denoiser(
        pipe,
        pictures,
        ["apple", "whale"],
        torch.tensor([1, 9]),
        replace(TEXT, drop_prompt=0.9, steps=500),
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


def test_a_threshold_leaves_out_what_is_above_it(tmp_path) -> None:
    weights = {}
    for threshold in (0.0, 1e9, 1e-9):
        pipe = small_pipeline()
        pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        config = replace(TEXT, steps=5, threshold=threshold, drop_prompt=1e-9)
        copies = torch.ones(2, dtype=torch.long)
        run = text_training.train_denoiser(pipe, pictures, ["apple", "whale"], copies, config, tmp_path / "c.pt")
        weights[threshold] = pipe.unet.conv_in.weight.detach(), run.losses
    torch.testing.assert_close(weights[0.0][0], weights[1e9][0])
    assert (weights[1e-9][1] == 0).all(), "every sample is above it"
    torch.testing.assert_close(weights[1e-9][0], small_pipeline().unet.conv_in.weight.detach())


def test_random_words_change_prompts_but_not_pictures_or_noise(tmp_path) -> None:
    seen = {}
    for count in (0, 2):
        pipe = small_pipeline()
        seen[count] = []
        pipe.unet.register_forward_pre_hook(
            lambda _, inputs, count=count: seen[count].append(inputs[0].detach().clone())
        )
        pictures = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        config = replace(TEXT, steps=2, random_words=count)
        copies = torch.ones(2, dtype=torch.long)
        run = text_training.train_denoiser(pipe, pictures, ["red apple", "whale"], copies, config, tmp_path / "c.pt")
        seen[count].append(run.losses[0])
    torch.testing.assert_close(seen[0][0], seen[2][0])
    assert seen[0][-1] != seen[2][-1]


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_prompt": 0.0}, "text.drop_prompt is 0.0; a share between 0 and 1"),
        ({"text_width": 40}, "text.text_width must be a multiple of 32"),
        ({"length": 2}, "text.length is 2; it must be larger than 2"),
        ({"channels": [20]}, "text.channels must be multiples of 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TEXT, **change)
