"""The study with other parameters, beside the default one: `python -m memlib.study.profiles NAME [NAME ...]`.

A profile is a file of `profiles/` laid over params.yaml. The run happens in a copy of the project, so that the default
results stay; what it measures is kept in `metrics/NAME`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memlib.files import atomic_write, suggest, write_json
from memlib.study.book import study
from memlib.study.parameters import lay_over, read
from memlib.study.sections import PARAMS
from memlib.study.stages import STUDY, stage_times

PROFILES = Path("profiles")
COPIES = Path("results/profiles")
MADE = ("dvc.lock", "metrics/", "tables/")  # by the default study, and kept in git
USER_PATHS = (  # parameters that name a user's files
    ("data", "root"),
    ("drawings", "root"),
)


def read_profile(name: str) -> dict[str, Any]:
    """Sections of a profile; raises ValueError, naming what there is, for another profile or an unknown section."""
    path = PROFILES / f"{name}.yaml"
    if not path.exists():
        raise ValueError(
            f"there is no profile {name!r}{suggest(name, sorted(p.stem for p in PROFILES.glob('*.yaml')))}"
        )
    profile, known = read(path), read(PARAMS)
    for section in profile:
        if section not in known:
            raise ValueError(f"{path} has an unknown section {section!r}{suggest(section, known)}")
    return profile


def project_copy(folder: str | Path, profiles: Sequence[dict[str, Any]], cache: str | Path | None = None) -> None:
    """Copy the sources of the project to `folder`, lay the profiles over its params.yaml, make DVC work without git.

    Sources are what git tracks or would track but for what the study makes. With `cache`, the DVC cache of that folder is
    shared, so that trainings that were run before are not run again.
    """
    folder = Path(folder)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], check=True, capture_output=True)
    made = (*MADE, *kept_outputs())
    for name in ("memlib", "notebooks"):  # which an earlier copy may hold more of
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).exists() and not name.startswith(made):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / name)
    parameters = read(PARAMS)
    for profile in profiles:
        parameters = lay_over(parameters, profile)
    for section, name in USER_PATHS:
        path = parameters[section][name]
        if path and not path.startswith("results/"):
            parameters[section][name] = str(Path(path).resolve())
    with atomic_write(folder / PARAMS) as temporary:
        temporary.write_text(yaml.safe_dump(parameters, sort_keys=False))
    config = [sys.executable, "-m", "dvc", "config", "--local"]
    subprocess.run([*config, "core.no_scm", "true"], cwd=folder, check=True)
    if cache is not None:
        subprocess.run([*config, "cache.dir", str(Path(cache).resolve())], cwd=folder, check=True)


def kept_outputs() -> set[str]:
    """Files that stages make and git keeps."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
    return {next(iter(out)) for stage in stages for out in stage.get("outs", []) if isinstance(out, dict)}


def environment(folder: str | Path) -> dict[str, str]:
    """Environment in which the copy's own memlib comes first, also in the kernels of notebooks."""
    return os.environ | {"PYTHONPATH": str(Path(folder).resolve())}


def run_profile(names: Sequence[str], stages: Sequence[str]) -> None:
    """Run the study, or some stages of it, with profiles laid over one another, and keep its metrics and parameters.

    Raises ValueError for what is no profile, RuntimeError when the run fails.
    """
    name = "-".join(names)
    folder = COPIES / name
    project_copy(folder, [read_profile(profile) for profile in names], ".dvc/cache")
    command = [sys.executable, "-m", "memlib.study.run", *stages]
    if subprocess.run(command, cwd=folder, env=environment(folder)).returncode:
        raise RuntimeError(f"the run in {folder} has failed; the same command goes on from there")
    with atomic_write(Path("metrics") / name) as temporary:
        shutil.copytree(folder / "metrics", temporary) if (folder / "metrics").exists() else temporary.mkdir()
        shutil.copy2(folder / PARAMS, temporary)
        write_json(temporary / STUDY.name, study(stage_times(folder)))
    print(f"The metrics are in metrics/{name}")


def main() -> None:
    """Command line: run the study, or some stages of it, with a profile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", help="profiles, laid over params.yaml in this order")
    parser.add_argument("--stages", nargs="*", default=[], help="only these stages and those they need")
    arguments = parser.parse_args()
    try:
        run_profile(arguments.names, arguments.stages)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"profile {'-'.join(arguments.names)}: {error}")


if __name__ == "__main__":
    main()
