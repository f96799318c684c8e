"""Models from a folder: which schedulers are read, and what is refused before anything is loaded or run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import (
    DDPMPipeline,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    SchedulerMixin,
    VQModel,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from memlib.fields.load import load_field, load_pipeline, scheduler_class
from memlib.fields.schedules import schedule_sigmas
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import shared_noise, trajectory


@pytest.fixture(autouse=True)
def no_weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is refused, no part of a model is read."""
    if "refused" in request.node.name:
        for kind in (DiffusionPipeline, diffusers.ModelMixin):
            monkeypatch.setattr(kind, "from_pretrained", classmethod(lambda *_, **__: pytest.fail("it is loaded")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(folder / "pixels")
    small_pipeline().save_pretrained(folder / "text")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the model of pixels or, where a test is told so, of text."""
    return Path(shutil.copytree(models / getattr(request, "param", "pixels"), tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DISCRETE = ["DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"]


@pytest.mark.parametrize("kind", [f"{name}Scheduler" for name in [*DISCRETE, "HeunDiscrete", "UniPCMultistep"]])
@pytest.mark.parametrize("index", [True, False])
def test_the_scheduler_that_is_there_is_read(
    kind: str, index: bool, tmp_path: Path, generator: torch.Generator
) -> None:
    given = getattr(diffusers, kind)(beta_schedule="scaled_linear", prediction_type="v_prediction")
    DDPMPipeline(small_unet(), given).save_pretrained(tmp_path)
    if not index:
        (tmp_path / "model_index.json").unlink()
    field = load_field(tmp_path)
    assert type(field.scheduler) is type(given)
    assert torch.equal(field.sigmas, schedule_sigmas(given))
    x = torch.randn(2, 3, 8, 8, generator=generator)
    torch.testing.assert_close(field(x, 0.5), UNetField(small_unet(), given)(x, 0.5))


UNSUPPORTED = ["FlowMatchEulerDiscrete", "EDMEuler", "KarrasVe", "ScoreSdeVe", "CMStochasticIterative", "VQDiffusion"]


@pytest.mark.parametrize("kind", [f"{name}Scheduler" for name in UNSUPPORTED])
def test_a_scheduler_without_a_discrete_schedule_is_refused(kind: str, folder: Path) -> None:
    edit(folder / "scheduler/scheduler_config.json", _class_name=kind)
    index = folder / "model_index.json"
    edit(index, scheduler=["diffusers", kind])
    message = rf"^{kind} .*supported are those with alphas_cumprod, such as DDPMScheduler, [^\n]*$"
    for load in (load_field, load_pipeline):
        with pytest.raises(ValueError, match=message):
            load(folder)
    index.unlink()
    with pytest.raises(ValueError, match=message):
        load_field(folder)


def test_a_scheduler_that_tells_the_network_noise_levels_is_refused(folder: Path) -> None:
    edit(folder / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler", timestep_type="continuous")
    with pytest.raises(ValueError, match="the network under this EulerDiscreteScheduler is told no timestep"):
        load_field(folder)


def test_every_scheduler_of_diffusers_is_taken_for_its_noise_levels_or_refused() -> None:
    for kind in (name for name in dir(diffusers) if name.endswith("Scheduler")):
        try:
            found = scheduler_class(kind)
        except ValueError:
            continue
        assert issubclass(found, SchedulerMixin)
        assert schedule_sigmas(found()).isfinite().any()
    with pytest.raises(ValueError, match="the installed diffusers has no scheduler 'MyScheduler'"):
        scheduler_class("MyScheduler")
    with pytest.raises(ValueError, match="has no scheduler None"):
        scheduler_class(None)


def test_a_pipeline_in_memory_under_another_scheduler_is_refused() -> None:
    pipe = small_pipeline()
    for other in (FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()):
        pipe.scheduler = other
        with pytest.raises(ValueError, match=f"{type(other).__name__} has no discrete schedule of noise levels"):
            trajectory(pipe, ["a whale"], shared_noise((4, 4, 4), 1, 0))
        with pytest.raises(ValueError, match=f"{type(other).__name__} has no discrete schedule of noise levels"):
            UNetField(pipe.unet, other)


def test_an_unconditional_model_of_latents_is_refused(tmp_path: Path) -> None:
    vae = VQModel(block_out_channels=(32,), norm_num_groups=8)
    LDMPipeline(vae, small_unet(), diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    for load in (load_field, load_pipeline):
        with pytest.raises(ValueError, match="LDMPipeline has vqvae but no text_encoder; supported are unconditional"):
            load(tmp_path)


CODE = "; no remote code is run, only what the installed diffusers and transformers have$"
MARK = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "MyPipeline"}, "is a pipeline of the class 'MyPipeline', which diffusers does not have"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, r"class \['pipeline', 'MyPipeline'\], which diffusers does not"),
        ({"_class_name": "utils"}, "class 'utils', which diffusers does not have"),
        ({"_class_name": None}, "class None, which diffusers does not have"),
        ({"unet": ["my_unet", "MyUNet"]}, r"has a unet of the class \['my_unet', 'MyUNet'\] with code of its own"),
        ({"unet": ["os", "system"]}, "has a unet of the class"),
        ({"unet": [None, "MyUNet"]}, "has a unet of the class"),
        ({"extra": ["a", "b", "c"]}, "has a extra of the class"),
    ],
)
@pytest.mark.parametrize("folder", ["pixels", "text"], indirect=True)
def test_code_of_a_model_is_refused(changes: dict[str, object], message: str, folder: Path) -> None:
    edit(folder / "model_index.json", **changes)
    (folder / "unet" / "my_unet.py").write_text(MARK)
    (folder / "pipeline.py").write_text(MARK)
    for load in (load_field, load_pipeline):
        with pytest.raises(ValueError, match=message + ".*" + CODE):
            load(folder)
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize("folder", ["text"], indirect=True)
def test_code_under_the_name_of_a_library_is_refused(folder: Path) -> None:
    (folder / "unet" / "diffusers.py").write_text(MARK)
    with pytest.raises(ValueError, match="unet of the class .* with code of its own" + CODE):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": [None, None]}, "StableDiffusionPipeline has no unet; supported are"),
        ({"tokenizer": [None, None]}, "StableDiffusionPipeline has no tokenizer; supported are"),
        ({"text_encoder": [None, None]}, "has tokenizer and vae but no text_encoder; supported are"),
        ({"transformer": ["diffusers", "SanaTransformer2DModel"]}, "has a U-Net beside its transformer; supported are"),
    ],
)
@pytest.mark.parametrize("folder", ["text"], indirect=True)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str, folder: Path) -> None:
    edit(folder / "model_index.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_pipeline(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "unet/diffusion_pytorch_model.safetensors": (cut, "is broken or cut off"),
    "scheduler/scheduler_config.json": (cut, "cannot be read as JSON"),
    "unet/config.json": (cut, "cannot be read as JSON"),
    "model_index.json": (lambda path: path.write_text("[]"), "holds no JSON object"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("folder", ["pixels", "text"], indirect=True)
def test_a_broken_file_is_refused_by_its_name(name: str, folder: Path) -> None:
    breaking, message = BROKEN[name]
    breaking(folder / name)
    for load in (load_field, load_pipeline):
        with pytest.raises(ValueError, match=rf"^{folder / name} {message}[^\n]*$"):
            load(folder)


@pytest.mark.parametrize("folder", ["text"], indirect=True)
def test_weights_of_a_text_encoder_that_are_cut_are_refused(folder: Path) -> None:
    cut(folder / "text_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match=r"text_encoder/model.safetensors is broken or cut off"):
        load_field(folder)


def test_of_a_name_on_the_hub_the_index_is_read_first_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    index = {"_class_name": ["pipeline", "MyPipeline"], "unet": ["diffusers", "UNet2DModel"]}
    monkeypatch.setattr(DiffusionPipeline, "load_config", classmethod(lambda _, name: index))
    with pytest.raises(ValueError, match="somebody/model is a pipeline of the class.*" + CODE):
        load_field("somebody/model")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalEntryNotFoundError("no connection"),
            "the hub cannot be reached; its cache on this machine does not hold",
        ),
        (EntryNotFoundError("404"), "the hub gives none of that name: .*model_index.json"),
    ],
)
def test_a_hub_that_is_not_reached_is_told_from_a_model_that_it_lacks(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hf_hub_download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", hf_hub_download)
    with pytest.raises(ValueError, match=rf"^there is no folder somebody/model here, and .*{message}[^\n]*$"):
        load_pipeline("somebody/model")


def test_of_a_name_on_the_hub_no_code_is_trusted(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, given = DiffusionPipeline.from_pretrained, {}
    index = json.loads((models / "text" / "model_index.json").read_text())
    monkeypatch.setattr(DiffusionPipeline, "load_config", classmethod(lambda _, name: index))

    def from_pretrained(name: str, **settings: object) -> DiffusionPipeline:
        given.update(settings)
        monkeypatch.undo()
        return loaded(models / "text", **settings)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    assert load_field("somebody/model").takes_prompts
    assert given["trust_remote_code"] is False
    assert given["use_safetensors"] is True
