"""The audit of a pipeline of one's own, on one of Stable Diffusion's architecture with tiny widths."""

import json
from pathlib import Path

import papermill
import pytest
import torch
from conftest import TEXT
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from sklearn.metrics import roc_auc_score
from transformers import CLIPTextConfig, CLIPTextModel

from memlib import text
from memlib.text_model import build_scheduler, train_tokenizer

NOTEBOOK = Path(__file__).parent.parent / "notebooks/text_audit.ipynb"
SUSPECTED = [
    "The No Limits Business Woman Podcast",
    "Here's Who Will Be on the Cover of the New York Times Magazine, and Why It Matters to Readers in Every State, "
    "from the first page to the last one, with a list of all the names that were left out " + "and why they were " * 12,
    "Renegade RSS Laptop Backpack - View 5",
]
ORDINARY = ["a photo of a dog on a beach", "an oil painting of mountains at dawn", "two children and a kite", "a cup"]


def stable_diffusion(folder: Path) -> None:
    """The blocks of Stable Diffusion v1.4 with few channels, untrained; prompts of 77 tokens."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SUSPECTED + ORDINARY, 77)
    encoder = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(encoder),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=build_scheduler(TEXT),  # that of Stable Diffusion
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pipeline_of_stable_diffusions_architecture_is_audited(precision: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    stable_diffusion(tmp_path / "sd")
    (tmp_path / "suspected.jsonl").write_text("\n".join(json.dumps({"caption": prompt}) for prompt in SUSPECTED))
    (tmp_path / "ordinary.txt").write_text("\n".join(ORDINARY))
    papermill.execute_notebook(
        NOTEBOOK,
        tmp_path / "audit.ipynb",
        {
            "pipeline": str(tmp_path / "sd"),
            "suspected": "suspected.jsonl",
            "ordinary": "ordinary.txt",
            "precision": precision,
            "runs": {1: 4, 3: 2},
            "sampling_steps": 5,
            "shown": 2,
            "noises": 2,
            "iterations": 3,
            "max_batch": 4,
        },
        cwd=tmp_path,
        progress_bar=False,
        kernel_name="python3",
    )
    metrics = json.loads((tmp_path / "metrics/text_audit.json").read_text())
    assert metrics["prompts"] == {"suspected": 3, "ordinary": 4}
    assert [(row["steps"], row["generations"]) for row in metrics["table"]] == [(1, 1), (1, 4), (3, 1), (3, 2)]
    pipe = text.load_pipeline(tmp_path / "sd", getattr(torch, precision))
    noise = text.shared_noise(pipe, 4, torch.Generator().manual_seed(23))
    with pytest.warns(UserWarning, match="only 77 tokens are used; cut"):
        found = text.magnitudes(pipe, SUSPECTED + ORDINARY, noise[:2], 3, 5, 3.0, 4)
    score = found.value[:, 0].mean(1).numpy()
    expected = roc_auc_score([1] * 3 + [0] * 4, score)
    assert metrics["table"][2]["AUROC"]["value"] == pytest.approx(expected)
    shown = (tmp_path / "audit.ipynb").read_text()
    assert "Podcast" in shown
    assert "embedding moved" in shown
    assert "longer than the model reads" in shown
