"""What conda users install: the pip section of environment.yml, in a virtual environment of its own."""

import re
import subprocess
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.ci
def test_the_pip_section_of_environment_yml_installs(tmp_path: Path) -> None:
    sections = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = next(section["pip"] for section in sections if isinstance(section, dict))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    arguments = [part for line in lines for part in line.split(maxsplit=1)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *arguments], cwd=ROOT, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    versions = {normal(line.partition("==")[0]): line.partition("==")[2].partition("+")[0] for line in listed}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line and " ;" not in line]
    pinned = {normal(name): version for name, version in (line.split("==") for line in lines)}
    assert {name: versions.get(name) for name in pinned} == pinned
    subprocess.run([python, "-m", "pip", "check"], check=True)
    code = (
        "import memlib.score, memlib.study.run, memlib.study.book, pathlib; print(pathlib.Path(memlib.__file__).parent)"
    )
    where = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert where == str(ROOT / "memlib")
