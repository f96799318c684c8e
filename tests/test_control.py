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
from memlib.tensors import to_float
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
    pictures = torch.randint(0, 256, (130, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    items = pd.DataFrame({"id": [f"i{n}" for n in range(130)], "name": "", "caption": "", "copies": 0})
    found = ImageSet(pictures, items.assign(split=["heldout", "train", "pairs"] * 10 + ["reference"] * 100))
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
    strangers, network = images.load(CONTROL / "pictures"), load_embedding(CONTROL / "embedding.safetensors", 3, 8)
    assert strangers.items["id"].tolist() == [f"i{n}" for n in range(30, 130)], "what the model was trained on"
    rules = pd.read_parquet("tables/picture_control/rules.parquet")
    heldout, others = study.split("heldout").floats, study.rows([n for n in range(30) if n % 3]).floats
    expected = stage.validated(network, heldout, to_float(samples[:, 0]), strangers.floats, others, 3)
    pd.testing.assert_frame_equal(rules, expected, check_dtype=False)


def symmetric(n: int, seed: int) -> torch.Tensor:
    """Pictures [n, 3, 8, 8] of noise that look the same in the mirror."""
    half = 2 * torch.rand(n, 3, 8, 4, generator=torch.Generator().manual_seed(seed)) - 1
    return torch.cat([half, half.flip(-1)], -1)


def test_what_is_not_altered_is_a_copy_and_another_picture_is_none() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten())
    pictures, strangers, others = (symmetric(n, seed) for seed, n in enumerate((12, 200, 500)))
    coarse = 0.2 * symmetric(200, 4)  # nearer to the middle of all pictures than any picture
    table = stage.validated(flat, pictures, coarse, strangers, others, 0)
    assert table.columns.tolist() == ["alteration", "rule", "copies"]
    shares = table.pivot(index="alteration", columns="rule", values="copies")
    assert (shares.loc[["a little noise", "mirrored"]] == 1).all(axis=None)
    assert (shares.loc["shifted", ["calibrated", "ratio"]] < 0.2).all()
    assert shares.loc["any other picture", "calibrated"] <= 0.02
    assert shares.loc["any other picture", "ratio"] <= 0.02
    assert (shares["calibrated"] <= shares["samples alone"]).all(), "the strangers only take copies away"
    agreed = shares["samples alone, embedding agrees"]
    assert (agreed <= shares[["samples alone", "embedding"]].min(axis=1)).all()


def test_the_most_similar_other_picture_is_looked_for_among_all_others() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten())
    pictures, strangers = symmetric(12, 0), symmetric(200, 1)
    near = pictures + 0.01
    table = stage.validated(flat, pictures, strangers, strangers, torch.cat([symmetric(100, 2), near]), 0)
    shares = table.pivot(index="alteration", columns="rule", values="copies")["calibrated"]
    assert shares["the most similar other picture"] == 1
    assert shares["any other picture"] == pytest.approx(12 / 112, abs=0.03)
