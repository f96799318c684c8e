"""What samples are judged by: drawn from the reference model, and an embedding that is checked on altered pictures."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import scheduler, small_unet
from diffusers import DDPMPipeline

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.datasets.items import read_samples
from memlib.fields.load import load_field
from memlib.sampling.pictures import sampled
from memlib.study import make_control as stage
from memlib.study.draw_samples import CONTROL
from memlib.truth.embedding import load_embedding

EMBEDDING = {
    "steps": 5,
    "batch": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "ema_decay": 0.5,
    "precision": "no",
    "compile": False,
    "checkpoint_every": 100,
    "seed": 0,
    "temperature": 0.1,
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    monkeypatch.chdir(tmp_path)
    DDPMPipeline(small_unet(attention=False), scheduler()).save_pretrained(stage.MODEL)
    pictures = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    items = pd.DataFrame({"id": [f"i{n}" for n in range(20)], "name": "", "caption": "", "copies": 0})
    found = ImageSet(pictures, items.assign(split=["heldout", "reference"] * 10))
    images.save(found, "results/data")
    Path("params.yaml").write_text(yaml.safe_dump({"embedding": EMBEDDING}))
    return found


def test_the_control_is_the_reference_models_and_equal_runs_give_equal_bytes(study: ImageSet) -> None:
    written = []
    for _ in range(2):
        torch.manual_seed(len(written))
        stage.make_control(100, 2, "heun", 3)
        paths = [path for path in Path().rglob("*") if path.is_file() and "models" not in str(path)]
        written.append({path: path.read_bytes() for path in paths})
    assert written[0] == written[1]
    samples, ids = read_samples(CONTROL / "samples.safetensors")
    assert torch.equal(samples[:, 0], sampled(load_field(stage.MODEL), 100, 2, "heun", 3))
    assert ids[:2] == ["0000", "0001"]
    assert load_embedding(CONTROL / "embedding.safetensors", 3, 8)(study.floats).shape == (20, 64)
    rules = pd.read_parquet("tables/picture_control/rules.parquet")
    assert rules.groupby("rule").size().to_dict() == {"pixels": 5, "embedding": 5}
    assert rules[["found", "copies"]].apply(lambda share: share.between(0, 1).all()).all()


def symmetric(n: int, seed: int) -> torch.Tensor:
    """Pictures [n, 3, 8, 8] of noise that look the same in the mirror."""
    half = 2 * torch.rand(n, 3, 8, 4, generator=torch.Generator().manual_seed(seed)) - 1
    return torch.cat([half, half.flip(-1)], -1)


def test_what_is_not_altered_is_found_and_another_picture_is_none() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten())
    rules = stage.validated(flat, symmetric(12, 1), symmetric(200, 2), 0).set_index(["rule", "alteration"])
    for rule in ("pixels", "embedding"):
        assert rules.loc[(rule, "mirrored")].tolist() == [1.0, 1.0]
        assert rules.loc[(rule, "shifted"), "copies"] < 0.5
        assert rules.loc[(rule, "the most similar other picture"), "found"] == 0
        assert rules.loc[(rule, "the most similar other picture"), "copies"] < 0.2
