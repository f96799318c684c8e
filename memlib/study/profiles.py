"""The study with other parameters, beside the default one: `python -m memlib.profiles NAME [NAME ...]`.

A profile is a file of `profiles/` laid over params.yaml. The run happens in a copy of the project, so that the default
results stay; what it measures is kept in `metrics/NAME`.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memlib.files import suggest, whole_file
from memlib.pipeline import reporting_errors

PROFILES = Path("profiles")
USER_PATHS = (  # parameters that name a user's files
    ("data", "root"),
    ("drawings", "root"),
    ("text_audit", "pipeline"),
    ("text_audit", "suspected"),
    ("text_audit", "ordinary"),
)


def read_profile(name: str) -> dict[str, Any]:
    """Sections of a profile; raises ValueError, naming what there is, for another profile or an unknown section."""
    path = PROFILES / f"{name}.yaml"
    if not path.exists():
        raise ValueError(
            f"there is no profile {name!r}{suggest(name, sorted(p.stem for p in PROFILES.glob('*.yaml')))}"
        )
    profile = yaml.safe_load(path.read_text())
    known = yaml.safe_load(Path("params.yaml").read_text())
    for section in profile:
        if section not in known:
            raise ValueError(f"{path} has an unknown section {section!r}{suggest(section, known)}")
    return profile


def project_copy(folder: str | Path, profiles: Sequence[dict[str, Any]], cache: str | Path | None = None) -> None:
    """Copy the sources of the project to `folder`, lay the profiles over its params.yaml, make DVC work without git.

    Sources are what git tracks or would track but for the outputs of stages. With `cache`, the DVC cache of that folder
    is shared, so that trainings that were run before are not run again.
    """
    folder = Path(folder)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], check=True, capture_output=True)
    made = outputs()
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).exists() and name != "dvc.lock" and not name.startswith("metrics/") and name not in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / name)
    parameters = yaml.safe_load(Path("params.yaml").read_text())
    for profile in profiles:
        parameters = {section: content | profile.get(section, {}) for section, content in parameters.items()}
    for section, name in USER_PATHS:
        path = parameters[section][name]
        on_hub = name == "pipeline" and not Path(path).exists()
        if path and not path.startswith("results/") and not on_hub:
            parameters[section][name] = str(Path(path).resolve())
    with whole_file(folder / "params.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(parameters, sort_keys=False))
    config = ["dvc", "config", "--local"]
    subprocess.run([*config, "core.no_scm", "true"], cwd=folder, check=True)
    if cache is not None:
        subprocess.run([*config, "cache.dir", str(Path(cache).resolve())], cwd=folder, check=True)


def outputs() -> set[str]:
    """Files that stages make and git keeps, but for the metrics."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
    return {next(iter(out)) for stage in stages for out in stage.get("outs", []) if isinstance(out, dict)}


def environment(folder: str | Path) -> dict[str, str]:
    """Environment in which the copy's own memlib comes first, also in the kernels of notebooks."""
    return os.environ | {"PYTHONPATH": str(Path(folder).resolve())}


def main() -> None:
    """Command line: run the study, or some stages of it, with a profile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", help="profiles, laid over params.yaml in this order")
    parser.add_argument("--stages", nargs="*", default=[], help="only these stages and those they need")
    arguments = parser.parse_args()
    name = "-".join(arguments.names)
    with reporting_errors(f"profile {name}"):
        profiles = [read_profile(one) for one in arguments.names]
        folder = Path("results/profiles") / name
        project_copy(folder, profiles, ".dvc/cache")
        for command in (
            ["python", "-m", "memlib.pipeline", "check"],
            ["dvc", "repro", *arguments.stages],
            ["python", "-m", "memlib.pipeline", "study"],
        ):
            if subprocess.run(command, cwd=folder, env=environment(folder)).returncode:
                raise RuntimeError(f"{' '.join(command)} failed in {folder}; the same command goes on from there")
        with whole_file(Path("metrics") / name) as temporary:
            shutil.copytree(folder / "metrics", temporary)
            shutil.copy2(folder / "params.yaml", temporary)
    print(f"The metrics are in metrics/{name}")


if __name__ == "__main__":
    main()
