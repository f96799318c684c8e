"""The digest that names a model: all that decides its predictions changes it, and nothing else does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import DDPMPipeline, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from test_detectors import pixel_field, text_field
from test_text import small_xl
from transformers import ByT5Tokenizer

from memlib.fields.digest import weights_digest
from memlib.fields.load import load_field
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import shared_noise, trajectory
from memlib.training import text_model


def digest_of(pipe: StableDiffusionPipeline) -> str:
    return weights_digest(UNetField(pipe.unet, pipe.scheduler, pipe))


def other_words(pipe: StableDiffusionPipeline) -> None:
    """As many tokens, one of them for another word."""
    pipe.tokenizer = text_model.train_tokenizer(["a red apple on a green tree", "the big blue shark"], 8)


CHANGES: dict[str, Callable[[StableDiffusionPipeline], object]] = {
    "weights of the network": lambda pipe: pipe.unet.conv_out.bias.data.add_(1),
    "weights of the text encoder": lambda pipe: pipe.text_encoder.get_input_embeddings().weight.data[0, 0].add_(1),
    "weights of the autoencoder": lambda pipe: pipe.vae.decoder.conv_out.bias.data.add_(1),
    "scale of the latents": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
    "activation of the network": lambda pipe: pipe.unet.register_to_config(act_fn="gelu"),
    "activation of the text encoder": lambda pipe: setattr(pipe.text_encoder.config, "hidden_act", "gelu"),
    "kind of prediction": lambda pipe: pipe.scheduler.register_to_config(prediction_type="sample"),
    "spacing of timesteps": lambda pipe: pipe.scheduler.register_to_config(timestep_spacing="trailing"),
    "last level": lambda pipe: pipe.scheduler.register_to_config(set_alpha_to_one=True),
    "noise levels": lambda pipe: pipe.scheduler.alphas_cumprod.mul_(0.999),
    "scheduler": lambda pipe: setattr(pipe, "scheduler", PNDMScheduler.from_config(pipe.scheduler.config)),
    "vocabulary": other_words,
    "kind of tokenizer": lambda pipe: setattr(pipe, "tokenizer", ByT5Tokenizer(model_max_length=8)),
    "length of prompts": lambda pipe: setattr(pipe.tokenizer, "model_max_length", 6),
    "side of padding": lambda pipe: setattr(pipe.tokenizer, "padding_side", "left"),
    "precision": lambda pipe: pipe.to(torch.float16),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_a_prediction_names_a_model(what: str) -> None:
    pipe = small_pipeline()
    before = digest_of(pipe)
    CHANGES[what](pipe)
    assert digest_of(pipe) != before


def test_a_pixel_model_is_named_by_network_and_scheduler() -> None:
    first = weights_digest(pixel_field())
    assert weights_digest(pixel_field()) == first
    euler = EulerDiscreteScheduler.from_config(scheduler().config)
    others = [
        UNetField(small_unet(seed=1), scheduler()),
        UNetField(small_unet(), scheduler("sample")),
        UNetField(small_unet(), euler),
        UNetField(small_unet().to(torch.bfloat16), scheduler()),
    ]
    assert len({first, *map(weights_digest, others)}) == 5


def test_what_a_pipeline_with_two_text_encoders_adds_counts() -> None:
    pipe = small_xl()
    found = [digest_of(pipe)]
    pipe.text_encoder_2.get_input_embeddings().weight.data[0, 0] += 1
    found.append(digest_of(pipe))
    pipe.register_to_config(force_zeros_for_empty_prompt=not pipe.config.force_zeros_for_empty_prompt)
    found.append(digest_of(pipe))
    assert len(set(found)) == 3


def test_a_model_has_one_name_in_memory_in_two_folders_and_after_use(tmp_path: Path) -> None:
    pipe = small_pipeline()
    for name in ("a", "b"):
        pipe.save_pretrained(tmp_path / name)
    for part in ("unet", "vae", "scheduler"):  # another version wrote it
        (path,) = (tmp_path / "b" / part).glob("*config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": "0.30.0"}))
    trajectory(pipe, ["a whale", "a tree"], shared_noise((4, 4, 4), 1, 0), 1)
    fields = [load_field(tmp_path / name) for name in ("a", "b")]
    fields[0].encode_prompts(["a whale"])
    assert len({digest_of(pipe), *map(weights_digest, fields)}) == 1
    assert digest_of(pipe) == weights_digest(text_field())
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(tmp_path / "pixels")
    (tmp_path / "pixels" / "model_index.json").unlink()
    assert weights_digest(load_field(tmp_path / "pixels")) == weights_digest(pixel_field())
