"""What every stage of dvc.yaml shares: checked parameters, notebooks run by papermill, time and memory, clear errors."""

import argparse
import ast
import dataclasses
import itertools
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import yaml

from memlib.config import TrainConfig
from memlib.files import read_json, suggest, whole_file, write_json
from memlib.text_config import AutoencoderConfig, TextConfig

NOTEBOOKS = Path("notebooks")
BOOK_STAGES = ("reproducibility", "book")  # run after the times of all others are known
SIGMAS = (  # parameters that are noise levels of the schedule
    ("volume", "sigma_min"),
    ("volume", "baseline_sigma"),
    ("flow", "sigma_min"),
    ("estimators", "sigma_min"),
    ("frontier", "levels"),
    ("selection", "loss_sigma"),
    ("repeats", "loss_sigma"),
    ("repeats", "sigma_min"),
    ("modification", "loss_sigma"),
    ("flux", "levels"),
    ("peaks", "levels"),
)
TEXT_SIGMAS = (
    ("detection", "loss_sigma"),
    ("latent", "levels"),
    ("latent", "growth_min"),
)  # of the text-to-image model's
TRAININGS = {"train": TrainConfig, "autoencoder": AutoencoderConfig, "text": TextConfig}
LAID_OVER = {
    "retrain": "train",
    "mirrored": "train",
    "arm": "text",
}  # sections of trainings that change some settings of another
PRECISIONS = ("float32", "float16", "bfloat16")
SPLITS = ("train", "heldout", "reference", "retrain")
PACKAGES = (
    "torch",
    "diffusers",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "jupyter-book",
    "papermill",
    "dvc",
)


def read_parameters(section: str) -> dict[str, Any]:
    """One section of params.yaml, after the whole file has been checked."""
    return check_parameters()[section]


def check_parameters(path: str | Path = "params.yaml") -> dict[str, Any]:
    """Content of params.yaml, after its names, types and the settings of the training have been checked.

    Raises ValueError for a section or name that nothing reads, naming the nearest one that something does, for one
    that is missing, for a value of another type than the notebook's own, and for settings that cannot be.
    """
    parameters = yaml.safe_load(Path(path).read_text())
    known = known_parameters()
    _check_names(parameters, known, str(path), "section")
    for section, names in known.items():
        content = parameters[section]
        if not isinstance(content, dict):
            raise ValueError(f"section {section} of {path} is {content!r}; it must map names to values")
        needed = {name for name in names if section not in LAID_OVER or name in content}
        _check_names(content, names, f"section {section} of {path}", "parameter", needed)
        for name, value in content.items():
            kind = names[name]
            if not isinstance(value, (int, float) if kind is float else kind) or (
                isinstance(value, bool) and kind is not bool
            ):
                raise ValueError(f"{section}.{name} in {path} is {value!r}; it must be of type {kind.__name__}")
    for section, config in TRAININGS.items():
        config(**parameters[section])
    for section, base in LAID_OVER.items():
        TRAININGS[base](**parameters[base] | parameters[section])
    for name, settings in parameters["run"]["text_arms"].items():
        _check_names(settings, known["text"], f"run.text_arms.{name} of {path}", "parameter", ())
        TextConfig(**parameters["text"] | parameters["arm"] | settings)
    return parameters


def _check_names(
    content: dict[str, Any], known: dict[str, Any], where: str, what: str, needed: Iterable[str] | None = None
) -> None:
    """Refuse names that are not known and miss none of the needed ones (all that are known, if not given)."""
    for name in content:
        if name not in known:
            raise ValueError(f"{where} has an unknown {what} {name!r}{suggest(name, known)}")
    for name in known if needed is None else needed:
        if name not in content:
            raise ValueError(f"{where} has no {what} {name!r}")


def check_study() -> None:
    """Check params.yaml, also where values of several sections must fit together; raises ValueError."""
    from diffusers import DDPMScheduler

    from memlib import data, models, modification, ode, training

    parameters = check_parameters()
    pictures, config = parameters["data"], TrainConfig(**parameters["train"])
    data.check_name(pictures["name"])
    _check_names(pictures["splits"], dict.fromkeys(SPLITS), "data.splits in params.yaml", "split")
    _check_names(pictures["copies"], pictures["splits"], "data.copies", "split", ())
    for split in ("train", "reference", "retrain"):
        if split not in pictures["copies"]:
            raise ValueError(f"data.copies has no split {split!r}; give it {{}} for none planted")
    for split, planted in pictures["copies"].items():
        data.check_copies(planted, pictures["splits"][split], split)
    training.build_network(1, pictures["size"], config)
    for arm in parameters["run"]["arms"]:
        by, _, how = str(arm).partition("-")
        _check_names({by: None}, dict.fromkeys(("growth", "loss", "random", "oracle")), "run.arms", "choice", ())
        _check_names({how: None}, dict.fromkeys(get_args(modification.Modification)), "run.arms", "modification", ())
    for name, needed in (("arms", ("growth-drop", "random-drop", "oracle-drop", "loss-drop")), ("seeds", (0,))):
        missing = [value for value in needed if value not in parameters["run"][name]]
        if missing:
            raise ValueError(f"run.{name} has no {missing[0]!r}, with which the chapters compare the others")
    levels = models.schedule_sigmas(DDPMScheduler(1000, beta_schedule=config.beta_schedule))
    frontier = parameters["frontier"]
    reach = max(frontier["levels"], default=1.0) * frontier["step_ratio"] ** max(frontier["steps"], default=1)
    sigmas = [(f"{section}.{name}", parameters[section][name]) for section, name in SIGMAS]
    peaks = parameters["peaks"]
    top = max(peaks["levels"], default=1.0) * peaks["step_ratio"] ** peaks["growth_steps"]
    _check_sigmas([*sigmas, ("the last level of frontier", reach), ("the last level of peaks", top)], levels)
    _check_text(parameters)
    for section, name, needed in (
        ("frontier", "axes", 1),
        ("frontier", "steps", 1),
        ("frontier", "draws", 2),
        ("landscape", "powers", 1),
        ("flux", "powers", 1),
        ("peaks", "powers", 1),
    ):
        values = parameters[section][name]
        if needed not in values:
            raise ValueError(f"{section}.{name} is {values}; it must hold {needed}, which a claim is judged by")
        if min(values) < 1:
            raise ValueError(f"{section}.{name} is {values}; all must be at least 1")
    if sorted(set(parameters["flow"]["steps"])) != parameters["flow"]["steps"] or len(parameters["flow"]["steps"]) < 2:
        raise ValueError(f"flow.steps is {parameters['flow']['steps']}; it must be at least two rising numbers")
    for section, name, least in (("frontier", "budget", 2), ("estimators", "dimensions", 16)):
        if parameters[section][name] < least:
            raise ValueError(f"{section}.{name} is {parameters[section][name]}; it must be at least {least}")
    if parameters["repeats"]["unseen"] > pictures["splits"]["heldout"]:
        raise ValueError(
            f"repeats.unseen is {parameters['repeats']['unseen']} but data.splits.heldout only {pictures['splits']['heldout']}"
        )
    ode.check_method(parameters["volume"]["method"])


def _check_sigmas(named: list[tuple[str, Any]], levels: Any) -> None:
    """Raise ValueError for a noise level, or one of several, that is outside of a schedule of rising `levels`."""
    for name, values in named:
        for sigma in values if isinstance(values, list) else [values]:
            if not levels[0] <= sigma < levels[-1]:
                raise ValueError(
                    f"{name} is {sigma}; the schedule goes from {float(levels[0]):.4g} to {float(levels[-1]):.4g}"
                )


def _check_text(parameters: dict[str, Any]) -> None:
    """Check what must fit together for the chapters on prompts."""
    from memlib import data, models, text, text_model

    for name in ("suspected", "ordinary"):
        if not parameters["text_audit"][name].startswith("results/"):
            text.read_prompts(parameters["text_audit"][name])
    pictures, arms = parameters["drawings"], parameters["run"]["text_arms"]
    data.check_name(pictures["name"])
    splits = dict.fromkeys(("train", "planted", "unseen"))
    _check_names(pictures["subjects"], splits, "drawings.subjects in params.yaml", "split")
    data.check_copies(pictures["copies"], pictures["subjects"]["planted"], "planted")
    data.check_copies(pictures["triggers"], pictures["subjects"]["train"], "train (drawings.triggers)")
    planted = (pictures["copies"], pictures["triggers"])
    most = max((times for copies in planted for times in copies), default=0)
    if min(copies.get(most, 0) for copies in planted) < 2:
        raise ValueError(
            f"drawings.copies is {pictures['copies']} and drawings.triggers {pictures['triggers']}; the largest number of "
            "copies must be the same in both, with at least two pictures each, which the claims are judged by"
        )
    vae = text_model.build_autoencoder(pictures["size"], AutoencoderConfig(**parameters["autoencoder"]))
    config = TextConfig(**parameters["text"])
    latent = text_model.latent_side(vae)
    if latent % 2 ** (len(config.channels) - 1):
        raise ValueError(
            f"latents of {latent} numbers a side do not halve {len(config.channels) - 1} times; give text.channels fewer levels"
        )
    scheduler = text_model.build_scheduler(config)
    sigmas = [(f"{section}.{name}", parameters[section][name]) for section, name in TEXT_SIGMAS]
    _check_sigmas(sigmas, models.schedule_sigmas(scheduler))
    if "base" in arms:
        raise ValueError("run.text_arms has an arm 'base', which is what the arms start from; give it another name")
    for section, needed in (
        ("detection", ("planted",)),
        ("training_mitigation", ("planted", "threshold", "random-words")),
    ):
        for arm in needed:
            if arm not in parameters[section]["arms"]:
                raise ValueError(f"{section}.arms has no {arm!r}, with which the chapter compares the others")
        for arm in parameters[section]["arms"]:
            if arm not in arms:
                raise ValueError(
                    f"{section} needs the arm {arm!r}, which run.text_arms does not have{suggest(arm, arms)}"
                )
    detection = parameters["detection"]
    runs = detection["runs"]
    if not (len(runs) > 1 and 1 in runs and max(runs) == detection["sampling_steps"] and runs[max(runs)] >= 2):
        raise ValueError(
            f"detection.runs is {runs}; it must hold 1 step, and all {detection['sampling_steps']} of them with at least 2 "
            "generations"
        )
    if detection["regime_generations"] > max(runs.values()):
        raise ValueError(
            f"detection.regime_generations is {detection['regime_generations']}; detection.runs has noises for "
            f"{max(runs.values())}"
        )
    for name in ("guidance", "late_guidances"):
        values = detection[name] if isinstance(detection[name], list) else [detection[name]]
        if not all(value > 1 for value in values):
            raise ValueError(f"detection.{name} is {detection[name]}; the magnitude needs a guidance above 1")
    audit = parameters["text_audit"]
    if audit["precision"] not in PRECISIONS:
        raise ValueError(f"text_audit.precision is {audit['precision']!r}{suggest(audit['precision'], PRECISIONS)}")
    if max(audit["runs"]) > audit["sampling_steps"]:
        raise ValueError(f"text_audit.runs is {audit['runs']}, with more steps than text_audit.sampling_steps")
    if not audit["guidance"] > 1:
        raise ValueError(f"text_audit.guidance is {audit['guidance']}; the magnitude needs a guidance above 1")
    mitigation = parameters["training_mitigation"]
    if mitigation["main_guidance"] not in mitigation["guidances"]:
        raise ValueError(
            f"training_mitigation.guidances is {mitigation['guidances']}; it must hold main_guidance, "
            f"{mitigation['main_guidance']}"
        )


def known_parameters() -> dict[str, dict[str, type]]:
    """Names that each section of params.yaml has, and their types.

    A notebook's names are those that its cell tagged `parameters` assigns; those of a training the fields of its settings.
    """
    sections = {path.stem: notebook_parameters(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    types = {
        name: {key: type(value) for key, value in defaults.items()} for name, defaults in sections.items() if defaults
    }
    fields = {
        section: {field.name: typing.get_origin(field.type) or field.type for field in dataclasses.fields(config)}
        for section, config in TRAININGS.items()
    }
    run = {"launcher": str, "seeds": list, "arms": list, "text_arms": dict}
    return {"run": run} | fields | {section: fields[base] for section, base in LAID_OVER.items()} | types


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Names and default values that a notebook's cell tagged `parameters` assigns."""
    cells = json.loads(Path(path).read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assignments = [node for source in sources for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}


def run_notebook(name: str, output: str | Path) -> None:
    """Run notebooks/NAME.ipynb with its section of params.yaml and write it, normalised, to `output`.

    A notebook without parameters has no section. When a cell fails, the notebook stays, as far as it came, in
    results/failed; ValueError is raised with memlib's sentence where an input was refused, RuntimeError otherwise.
    """
    import nbformat
    import papermill
    from traitlets.config import Config

    source = NOTEBOOKS / f"{name}.ipynb"
    parameters = read_parameters(name) if notebook_parameters(source) else {}
    running = Path("results/failed") / source.name
    running.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Sockets of the file system: no port of the machine is opened.
        config = Config({"KernelManager": {"transport": "ipc"}})
        papermill.execute_notebook(
            source,
            running,
            parameters,
            config=config,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr,
            request_save_on_cell_execute=False,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "ValueError":
            raise ValueError(f"{error.evalue} ({running} shows where)") from error
        raise RuntimeError(f"a cell of {source} failed; see {running}\n{error}") from error
    notebook = normalise(nbformat.read(running, as_version=4))
    with whole_file(output) as temporary:
        nbformat.write(notebook, temporary)
    running.unlink()


def normalise(notebook: Any) -> Any:
    """Drop from an executed notebook what differs between equal runs: times, random ids, progress on stderr, split streams."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if outputs and output.output_type == "stream" == outputs[-1].output_type:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    return notebook


@contextmanager
def timed_stage(name: str) -> Iterator[SimpleNamespace]:
    """Write the seconds and peak memory (MiB) of the block to a JSON file of its own once it has ended well.

    `earlier_seconds` of the object given may be set to what interrupted runs had spent before.
    """
    stage = SimpleNamespace(earlier_seconds=0.0)
    started = time.monotonic()
    yield stage
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    scale = 2**20 if sys.platform == "darwin" else 2**10
    seconds = round(stage.earlier_seconds + time.monotonic() - started, 1)
    write_json(_times_file(name), {"seconds": seconds, "peak_memory_mib": round(kilobytes / scale)})


@contextmanager
def reporting_errors(stage: str) -> Iterator[None]:
    """Turn a refused input or a failed cell into a message on stderr and exit status 1."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        sys.exit(f"stage {stage}: {error}")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and package versions of this machine."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": gpus,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _times_file(stage: str) -> Path:
    return Path("results/book_times" if stage in BOOK_STAGES else "results/times") / f"{stage}.json"


def stage_names(dvc_file: str | Path = "dvc.yaml") -> list[str]:
    """Names of all stages of dvc.yaml, each of a matrix on its own (`retrain@growth-drop`)."""
    names = []
    for name, stage in yaml.safe_load(Path(dvc_file).read_text())["stages"].items():
        axes = [_resolve(axis) for axis in stage.get("matrix", {}).values()]
        axes += [list(_resolve(stage["foreach"]))] if "foreach" in stage else []
        names += [f"{name}@{'-'.join(map(str, item))}" for item in itertools.product(*axes)] if axes else [name]
    return names


def _resolve(axis: list[Any] | str) -> list[Any] | dict[str, Any]:
    """Values of one axis of a matrix or of a foreach: as they stand there or, for `${section.name}`, in params.yaml."""
    if isinstance(axis, list):
        return axis
    section, name = axis.removeprefix("${").removesuffix("}").split(".")
    return yaml.safe_load(Path("params.yaml").read_text())[section][name]


def stage_times() -> dict[str, dict[str, float]]:
    """Seconds and peak memory of the largest process, for each stage of dvc.yaml that has a last run."""
    files = {name: _times_file(name) for name in stage_names()}
    return {name: read_json(path) for name, path in files.items() if path.exists()}


def write_study() -> None:
    """Write metrics/study.json: the seconds of every stage, their sum, peak memory, the machine and the versions."""
    times = stage_times()
    study = {
        "seconds": {name: time["seconds"] for name, time in times.items()},
        "total_seconds": round(sum(time["seconds"] for time in times.values()), 1),
        "peak_memory_mib": max(time["peak_memory_mib"] for time in times.values()),
        "machine": machine(),
    }
    write_json("metrics/study.json", study)


def build_book() -> None:
    """Build the book afresh, with warnings as errors, and put it whole to book/_build/html."""
    program = Path(sys.executable).with_name("jupyter-book")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "build", "book", "-W", "-n", "--keep-going", "-q", "--path-output", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"the book does not build:\n{result.stdout}\n{result.stderr}")
        with whole_file("book/_build/html") as temporary:
            shutil.copytree(Path(folder) / "_build/html", temporary)


def main() -> None:
    """Command line of the stages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="check params.yaml")
    notebook = commands.add_parser("notebook", help="run a notebook with its section of params.yaml")
    notebook.add_argument("name")
    commands.add_parser("book", help="build the book")
    commands.add_parser("study", help="write metrics/study.json")
    arguments = parser.parse_args()
    if arguments.command == "check":
        with reporting_errors("check"):
            check_study()
    elif arguments.command == "notebook":
        with reporting_errors(arguments.name), timed_stage(arguments.name):
            if arguments.name in ("data", "drawings"):  # the first stages: what later ones would refuse is refused now
                check_study()
            run_notebook(arguments.name, f"book/chapters/{arguments.name}.ipynb")
    elif arguments.command == "book":
        with reporting_errors("book"), timed_stage("book"):
            build_book()
    else:
        write_study()


if __name__ == "__main__":
    main()
