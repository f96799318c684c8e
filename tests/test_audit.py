"""The audit of a pipeline of one's own, on one of Stable Diffusion's architecture with tiny widths."""

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXT
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from memlib import files
from memlib.fields.load import load_field
from memlib.sampling.pipeline import shared_noise
from memlib.training.text_model import build_scheduler, train_tokenizer

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SUSPECTED = [
    "The No Limits Business Woman Podcast",
    "Here's Who Will Be on the Cover of the New York Times Magazine, and Why It Matters to Readers in Every State, "
    "from the first page to the last one, with a list of all the names that were left out " + "and why they were " * 12,
    "Renegade RSS Laptop Backpack - View 5",
]
ORDINARY = ["a photo of a dog on a beach", "an oil painting of mountains at dawn", "two children and a kite", "a cup"]
SEED, ROWS, NOISES, STEPS, GENERATIONS, SAMPLING_STEPS = 23, 4, 3, 3, 2, 5


def stable_diffusion(folder: Path) -> None:
    """The blocks of Stable Diffusion v1.4 with few channels, untrained; prompts of 77 tokens, and its own scheduler."""
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
        scheduler=PNDMScheduler.from_config(build_scheduler(TEXT).config, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def execute(path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Names that the code of a notebook leaves, run here and now with other parameters."""
    names: dict[str, Any] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                assert parameters.keys() <= names.keys(), "every parameter that is set is one of the notebook"
                names |= parameters
    return names


@pytest.mark.filterwarnings("ignore:of the prompt .* only 77 tokens are used:UserWarning")
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.ci)])
def test_a_pipeline_of_stable_diffusions_architecture_is_audited(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    stable_diffusion(tmp_path / "sd")
    (tmp_path / "suspected.jsonl").write_text("\n".join(json.dumps({"caption": prompt}) for prompt in SUSPECTED))
    (tmp_path / "ordinary.txt").write_text("\n".join(ORDINARY))
    seen: list[int] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, arguments: seen.append(len(arguments[0])) if isinstance(module, UNet2DConditionModel) else None
    )
    try:
        execute(
            NOTEBOOKS / "experiments/prompt_audit.ipynb",
            {
                "pipeline": str(tmp_path / "sd"),
                "suspected": "suspected.jsonl",
                "ordinary": "ordinary.txt",
                "precision": precision,
                "rows": ROWS,
                "noises": NOISES,
                "runs": {str(STEPS): GENERATIONS},  # as papermill hands it over
                "sampling_steps": SAMPLING_STEPS,
                "shown": 2,
                "iterations": 3,
                "seed": SEED,
            },
        )
    finally:
        hook.remove()
    assert max(seen) <= ROWS, "never more items in a call than the pipeline's machine can hold"
    tables = tmp_path / "tables/prompt_audit"
    prompts = pd.read_parquet(tables / "prompts.parquet")
    assert prompts["prompt"].tolist() == [prompt.strip() for prompt in SUSPECTED + ORDINARY]
    assert prompts["group"].tolist() == ["suspected"] * 3 + ["ordinary"] * 4
    assert [bool(cut) for cut in prompts["cut"]] == [False, True] + [False] * 5
    first, mean = by_hand(tmp_path / "sd", getattr(torch, precision))
    tolerance = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(prompts["magnitude"], first.mean(1), rtol=tolerance)
    magnitudes = pd.read_parquet(tables / "magnitudes.parquet").pivot(
        index="prompt", columns=["steps", "noise"], values="magnitude"
    )
    np.testing.assert_allclose(magnitudes[1], first, rtol=tolerance)
    np.testing.assert_allclose(magnitudes[STEPS], mean, rtol=tolerance)
    worst = prompts[:3].nlargest(2, "magnitude").index.tolist()
    moved = pd.read_parquet(tables / "moved.parquet")
    assert moved["prompt"].tolist() == worst
    assert (moved["target"] == np.median(prompts["magnitude"][3:])).all()
    assert set(pd.read_parquet(tables / "tokens.parquet")["prompt"]) == set(worst)
    pictures = files.read_pictures(tables / "pictures.png")
    assert pictures.shape == (4, 64, 64, 3), "as it is and moved, of two prompts"

    capsys.readouterr()
    execute(NOTEBOOKS / "audit.ipynb", {"shown": 3})
    assert "longer than the model reads" in capsys.readouterr().out
    metrics = files.read_json("metrics/audit.json")
    assert metrics["prompts"] == {"suspected": 3, "ordinary": 4}
    settings = [(row["steps"], row["generations"], row["evaluations"]) for row in metrics["table"]]
    assert settings == [(1, 1, 1), (1, 3, 3), (3, 1, 6), (3, 2, 12)]


def test_the_chapter_says_what_the_tables_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    magnitude = np.array([9.0, 5.0, 8.0, 1.0, 0.0, 2.0, 4.0, 6.0])
    groups = ["suspected"] * 4 + ["ordinary"] * 4
    prompts = pd.DataFrame({"prompt": list("abcdefgh"), "group": groups, "cut": "", "magnitude": magnitude})
    rows = [(p, 1, 0, value, 1) for p, value in enumerate(magnitude)]
    rows += [(p, 10, 0, -value, 20) for p, value in enumerate(magnitude)]
    rows += [(p, 10, 1, 20.0 * (p < 4) + value, 20) for p, value in enumerate(magnitude)]
    moved = pd.DataFrame({"prompt": [0, 2], "target": 3.0, "magnitude": [2.9, 3.1], "iterations": [4, 10]})
    tokens = pd.DataFrame({"prompt": [0, 2], "token": ["a", "c"], "significance": [1.0, 2.0]})
    columns = ["prompt", "steps", "noise", "magnitude", "evaluations"]
    for name, table in (
        ("prompts", prompts),
        ("magnitudes", pd.DataFrame(rows, columns=columns)),
        ("moved", moved),
        ("tokens", tokens),
    ):
        files.write_table(f"tables/prompt_audit/{name}.parquet", table)
    files.write_pictures("tables/prompt_audit/pictures.png", torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    files.write_json("tables/prompt_audit/pipeline.json", {"pipeline": "mine"})
    execute(NOTEBOOKS / "audit.ipynb", {"alarm": 0.5})
    metrics = files.read_json("metrics/audit.json")
    assert metrics["suspected_above_the_alarm"]["value"] == 3 / 4, "above 3, the median of the ordinary ones"
    values = [round(row["AUROC"]["value"], 4) for row in metrics["table"]]
    assert values == [12 / 16, 4 / 16, 1.0]
    assert [row["evaluations"] for row in metrics["table"]] == [1, 20, 40]
    assert metrics["moved"] == {"target": 3.0, "share at the target": 0.5, "mean iterations": 7.0}


@torch.no_grad()
def by_hand(folder: Path, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """|D_c - D_u| at the first step [N, noises], and the mean of |eps_c - eps_u| over the first steps of DDIM."""
    field = load_field(folder, dtype)
    pipe, abar = field.pipe, field.scheduler.alphas_cumprod
    noise = shared_noise(field.shape, NOISES, SEED)
    times = [1 + i * (1000 // SAMPLING_STEPS) for i in reversed(range(SAMPLING_STEPS))]

    def change(x: torch.Tensor, t: int, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        eps = [
            pipe.unet(x.to(dtype), t, pipe.encode_prompt(words, "cpu", 1, False)[0].expand(len(x), -1, -1)).sample
            for words in ("", prompt)
        ]
        return eps[0].float(), eps[1].float() - eps[0].float()

    first, means = [], []
    for prompt in SUSPECTED + ORDINARY:
        ratio = float(((1 - abar[times[0]]) / abar[times[0]]).sqrt())
        first.append(ratio * change(noise, times[0], prompt)[1].flatten(1).norm(dim=1))
        x, lengths = noise[:GENERATIONS], []
        for t in times[:STEPS]:
            without, difference = change(x, t, prompt)
            lengths.append(difference.flatten(1).norm(dim=1))
            eps, before = without + 3.0 * difference, abar[max(t - 1000 // SAMPLING_STEPS, 0)]
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            x = before.sqrt() * clean + (1 - before).sqrt() * eps
        means.append(torch.stack(lengths).mean(0))
    return torch.stack(first).numpy(), torch.stack(means).numpy()
