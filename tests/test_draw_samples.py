"""What a model reproduces, as the stage writes it: samples from seeds alone, matches by hand, and all or nothing."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import scheduler, small_unet
from diffusers import DDPMPipeline
from safetensors.torch import save_file

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.datasets.items import read_samples, write_samples
from memlib.detectors.denoising import denoising_loss
from memlib.fields.load import load_field
from memlib.files import read_pictures
from memlib.sampling import pictures as sampling
from memlib.sampling.ancestral import sample_ancestral
from memlib.sampling.grids import sigma_grid
from memlib.sampling.ode import sample
from memlib.study import draw_samples as stage
from memlib.tensors import item_seeds, to_float, to_uint8
from memlib.truth.embedding import build_embedding
from memlib.truth.verdicts import judge_samples

SETTINGS = {
    "model": "model",
    "images": "data",
    "split": "train",
    "samples": 6,
    "steps": 3,
    "sampler": "ancestral",
    "mirrored": False,
    "seed": 4,
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """An untrained model beside pictures to be reproduced, and others."""
    monkeypatch.chdir(tmp_path)
    DDPMPipeline(small_unet(attention=False), scheduler()).save_pretrained("model")
    images_seen = torch.randint(0, 256, (9, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = ["heldout", "train", "other"] * 3
    items = pd.DataFrame({"id": [f"i{n}" for n in range(9)], "name": "", "caption": "", "split": splits, "copies": 1})
    found = ImageSet(images_seen, items)
    images.save(found, "data")
    control = torch.randint(0, 256, (100, 1, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    write_samples(stage.CONTROL / "samples.safetensors", control, [str(n) for n in range(100)])
    strangers = torch.randint(0, 256, (100, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    ids = [f"r{n}" for n in range(100)]
    others = pd.DataFrame({"id": ids, "name": "", "caption": "", "split": "reference", "copies": 1})
    images.save(ImageSet(strangers, others), stage.CONTROL / "pictures")
    save_file(build_embedding(3, 8).state_dict(), stage.CONTROL / "embedding.safetensors")
    return found


def draw(key: str = "a", **settings: Any) -> tuple[torch.Tensor, pd.DataFrame]:
    """The samples [N, 3, 8, 8] and the matches that the stage writes."""
    stage.draw_samples(key, **SETTINGS | settings)
    samples, _ = read_samples(f"results/samples/{key}.safetensors")
    return samples[:, 0], pd.read_parquet(f"tables/truth/{key}/matches.parquet")


@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_samples_are_those_of_their_numbers_and_the_seed(
    sampler: str, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = draw(sampler=sampler)
    field = load_field("model")
    if sampler == "heun":
        expected = sample(field, item_seeds(range(6), 4), sigma_grid(field.sigma_min, field.sigma_max, 3))
    else:
        expected = sample_ancestral(field, item_seeds(range(6), 4), field.sigmas[[0, 500, 999]])
    assert (made.int() - to_uint8(expected).int()).abs().max() <= 1, "only what rounding changes"
    monkeypatch.setattr(sampling, "BATCH", 4)
    torch.manual_seed(9)
    fewer, _ = draw("fewer", sampler=sampler, samples=5)
    assert (fewer.int() - made[:5].int()).abs().max() <= 1, "whatever is drawn beside them"
    other, _ = draw("other", sampler=sampler, seed=5)
    assert (other.int() - made.int()).abs().float().mean() > 10
    assert read_samples("results/samples/a.safetensors")[1] == [f"{n:04d}" for n in range(6)]


def test_what_is_written_is_judged_by_the_control_among_the_split_and_the_held_out(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [n for n in range(9) if n % 3 != 2]
    judged, seen = data.rows(rows), torch.tensor([n % 3 == 1 for n in rows])
    copied = data.split("train").floats[[2, 0, 1, 1]]
    made = torch.cat([copied + 0.01, copied.flip(-1), data.split("heldout").floats[:1]])
    monkeypatch.setattr(stage, "sampled", lambda *_: to_uint8(made))
    control = to_float(read_samples(stage.CONTROL / "samples.safetensors")[0][:, 0])
    strangers = images.load(stage.CONTROL / "pictures").floats
    network = stage.load_embedding(stage.CONTROL / "embedding.safetensors", 3, 8)
    for mirrored in (False, True):
        _, matches = draw(samples=9, mirrored=mirrored)
        pictures = pd.read_parquet("tables/truth/a/pictures.parquet").set_index("id")
        similarity = pictures[["relative", "embedded_relative"]]
        whole = to_float(to_uint8(made)), control, strangers, judged.floats, judged.items["id"], seen, network, mirrored
        for written, expected in zip((matches, similarity), judge_samples(*whole), strict=True):
            pd.testing.assert_frame_equal(written, expected, check_dtype=False)
        assert matches["picture"][[0, 1, 2, 3, 8]].tolist() == ["i7", "i1", "i4", "i4", "i0"]
        assert (matches["relative"] < 1).tolist() == [True] * 4 + [mirrored] * 4 + [True]
        assert matches["nearest"].isin(["i1", "i4", "i7"]).all(), "the ratio is that of two pictures seen"
        near = {name: name in ("i0", "i1", "i4", "i7") for name in judged.items["id"]}
        assert (similarity["relative"] < 1).to_dict() == near
        assert pictures["generated_copies"].sum() == (matches["relative"] < 1).sum()
        assert (pictures["copies"] == judged.items.set_index("id")["copies"]).all()
    shown = to_uint8(made).permute(0, 2, 3, 1).numpy()
    assert (read_pictures("tables/truth/a/pictures.png") == shown).all()
    examples = read_pictures("tables/truth/a/examples.png")
    exact = (examples[:4, None] == shown[None, 4:]).all((2, 3, 4))
    assert exact.any(1).all(), "an exact copy of each picture first"


def test_a_key_with_a_model_takes_the_settings_of_the_pairs(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"samples": 5, "steps": 3, "sampler": "ancestral", "mirrored": True, "seed": 4}
    Path("params.yaml").write_text(yaml.safe_dump({"truth": {"a": SETTINGS}, "pair_truth": settings}))
    for arguments in (["a"], ["b", "model", "data"]):
        monkeypatch.setattr("sys.argv", ["draw_samples", *arguments])
        stage.main()
    counts = {key: len(pd.read_parquet(f"tables/truth/{key}/matches.parquet")) for key in "ab"}
    assert counts == {"a": 6, "b": 5}


def test_the_quality_is_the_loss_of_every_held_out_picture(data: ImageSet) -> None:
    draw()
    quality = pd.read_parquet("tables/truth/a/quality.parquet")
    heldout = data.split("heldout")
    assert quality["item"].tolist() == heldout.items["id"].tolist()
    losses = denoising_loss(load_field("model"), heldout.floats, 0.2, 4, item_seeds(heldout.items["id"], 4))
    assert quality["loss"].tolist() == pytest.approx(losses.mean(0).tolist(), rel=1e-4)


@pytest.mark.parametrize(("owner", "name"), [(stage, "sampled"), (pd.DataFrame, "to_parquet")])
def test_an_interrupted_run_leaves_nothing_half(
    owner: Any, name: str, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any, path: Any, *rest: Any, **how: Any) -> None:
        if owner is pd.DataFrame:
            Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    draw(seed=5)
    whole = written()
    draw()
    before = written()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        draw(seed=5)
    after = written()
    assert after.keys() == before.keys()
    assert all(content in (before[path], whole[path]) for path, content in after.items())
    draw(seed=5)
    assert written() == whole


def written() -> dict[Path, bytes]:
    """Everything that lies where the stage writes."""
    paths = [path for folder in ("results", "tables") for path in Path(folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}
