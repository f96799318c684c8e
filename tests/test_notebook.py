"""A notebook as a stage: its parameters, its stored output, and what a refusal or a kill leaves."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml

from memlib.evaluation.intervals import Estimate, mean, mean_share
from memlib.files import read_json
from memlib.study import plotting
from memlib.study.notebook import run_notebook

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean_and_defines_nothing(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ")
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    assert not [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_depends_on_the_parameters_that_its_notebook_reads(path: Path) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].get(path.stem, {})
    known = [name for entry in stage.get("params", []) for name in entry["results/params.json"]]
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    if "cmd" in stage:  # others are written out for several items
        for section, part in re.findall(r'read_section\(\s*"(\w+)"\s*\)(?:\["(\w+)"\])?', code):
            assert section in known or f"{section}.{part}" in known


def box(name: str, **known: object) -> list[str]:
    """The items of a chapter's box, of what the cells before it have found."""
    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if "answer" in cell.metadata.get("tags", []))
    *before, said = ast.parse(cell.source).body
    names = {"plotting": plotting} | known
    exec(compile(ast.Module(before, []), name, "exec"), names)
    return eval(compile(ast.Expression(said.value), name, "eval"), names).data.splitlines()


@pytest.mark.parametrize(("highest", "warned"), [((0.1, 0.49), True), ((0.1, 0.5), False), ((0.6, 0.1), False)])
def test_the_guards_box_warns_where_most_copies_of_all_families_pass(highest: tuple, warned: bool) -> None:
    columns = ["family", "steps that are read", "share of copies stopped", "prompts"]
    families = {"U-Net": ["planted"], "transformer": ["flow-planted"]}
    judged = [
        (family, reading, Estimate(0.05, 0, high if reading == "first step" else 0.9), 39)
        for family, high in zip(families, highest, strict=True)
        for reading in ("first step", "number of words (no model)", "looked up")
    ]
    alarms = [(name, "first step", Estimate(0.003, 0, 0.01)) for (name,) in families.values()]
    share = Estimate(0.946, 0.804, 1)
    first, *others = box(
        "guard",
        families=families,
        columns=columns,
        judged=pd.DataFrame(judged, columns=columns),
        found=pd.DataFrame(alarms, columns=["training", "window", "false alarms"]),
        styles=pd.DataFrame(
            [(family, "subject alone", share, share, share) for family in families],
            columns=["family", "style", "magnitude", "words", "all"],
        ),
        everything="all",
        rate=0.01,
        LOOKED_UP="looked up",
    )
    assert first.endswith("do not rely on it here.") == warned
    assert "do not rely" not in " ".join(others)
    for item in (first, *others):
        assert len(item.removeprefix("- ").replace("**", "")) <= 240, "a phone's screen"


def test_the_box_of_tokens_says_of_how_many_prompts_each_share_is() -> None:
    drawn = {"the whole prompt": [1.0, 0.5, 0.0], "without the trigger": [0.5, 0.5, 0.5]}
    variants = [
        {"variant": name, "id": prompt, "copies": share, "magnitude": 1.0}
        for name, shares in drawn.items()
        for prompt, share in zip("abc", shares, strict=True)
    ]
    ranked = {"input": Estimate(0.5, 0.1, 0.9), "left out": Estimate(0, 0, 0.7)}
    ranks, copies = box(
        "tokens",
        shares={"drawing their picture": ranked},
        counts={"drawing their picture": 2, "all with a trigger": 3},
        chance=0.1,
        by_input="input",
        plain="left out",
        variants=pd.DataFrame(variants),
        mean=mean,
        mean_share=mean_share,
        seed=0,
    )
    assert ranks.startswith("- Of 2 prompts with a trigger (drawing their picture)")
    assert copies.startswith("- All 3 prompts with a trigger copy in **0.500 [")


def study(folder: Path, *code: str, name: str = "toy", **parameters: object) -> None:
    """A study of one notebook with the parameter `n` and what else is given."""
    v4 = nbformat.v4
    assigned = "\n".join(f"{key} = None" for key in {"n": 7} | parameters)
    cells = [v4.new_markdown_cell("# Toy"), v4.new_code_cell(assigned, metadata={"tags": ["parameters"]})]
    cells += [v4.new_code_cell(source) for source in code]
    path = folder / f"notebooks/{name}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), path)
    (folder / "params.yaml").write_text(yaml.safe_dump({path.stem: {"n": 7} | parameters}))


def start(folder: Path, *arguments: str, stage: str | None = None) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"DVC_STAGE": stage} if stage else {})
    return subprocess.Popen(
        [sys.executable, "-m", "memlib.study.notebook", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.ci
def test_two_runs_of_a_chapter_are_the_same_bytes(tmp_path: Path) -> None:
    body = "import sys, time\nprint('n is', n)\ntime.sleep(0.1)\nprint('progress', file=sys.stderr)\nprint('twice')\nn"
    outputs = []
    for name in ("first", "second"):
        study(tmp_path / name, body)
        process = start(tmp_path / name, "toy")
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "progress" in errors
        outputs.append((tmp_path / name / "results/chapters/toy.ipynb").read_bytes())
        times = read_json(tmp_path / name / "results/times/toy.json")
        assert 0 < times["seconds"] < 60
        assert times["peak_memory_mib"] > 10
        assert not (tmp_path / name / "results/failed/toy.ipynb").exists()
    assert outputs[0] == outputs[1]
    notebook = nbformat.reads(outputs[0].decode(), as_version=4)
    assert notebook.cells[-1].outputs[0].text == "n is 7\ntwice\n"


def test_a_stage_of_an_experiment_gets_its_own_settings_and_leaves_no_page(tmp_path: Path) -> None:
    body = "import pathlib\npathlib.Path('tables').mkdir()\npathlib.Path(f'tables/{arm}.txt').write_text(f'{arm} {n} {levels}')"
    study(tmp_path, body, name="experiments/toy", arm="", levels=[])
    process = start(tmp_path, "experiments/toy", "--set", "arm=planted", "levels=[1, 2.5]", stage="toy@planted")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "tables/planted.txt").read_text() == "planted 7 [1, 2.5]"
    assert not (tmp_path / "results/chapters").exists()
    assert (tmp_path / "results/experiments/toy@planted.ipynb").exists()
    assert read_json(tmp_path / "results/made/toy@planted.json").keys() == {"tables/planted.txt"}


@pytest.mark.ci
def test_notebooks_side_by_side_keep_their_outputs_apart(tmp_path: Path) -> None:
    names = ("left", "right")
    for name in names:
        study(tmp_path / name, f"for i in range(300):\n    print('{name}', i, flush=True)", name=name)
    for name in names:
        (tmp_path / f"right/notebooks/{name}.ipynb").write_bytes(
            (tmp_path / f"{name}/notebooks/{name}.ipynb").read_bytes()
        )
    (tmp_path / "right/params.yaml").write_text("left: {n: 1}\nright: {n: 2}")
    for process in [start(tmp_path / "right", name) for name in names]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    for name in names:
        notebook = nbformat.read(tmp_path / f"right/results/chapters/{name}.ipynb", as_version=4)
        assert notebook.cells[-1].outputs[0].text == "".join(f"{name} {i}\n" for i in range(300))


def test_what_is_not_there_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, "n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no notebook 'toi'; did you mean 'toy'"):
        run_notebook("toi")
    with pytest.raises(ValueError, match=r"notebooks/toy.ipynb has no parameter 'm'; known: n"):
        run_notebook("toy", {"m": 1})
    (tmp_path / "params.yaml").write_text("tyo: {n: 1}")
    with pytest.raises(ValueError, match="params.yaml has no section 'toy'; did you mean 'tyo'"):
        run_notebook("toy")


def test_a_refused_input_is_one_sentence(tmp_path: Path) -> None:
    study(tmp_path, "raise ValueError('the sky is green; paint it blue')")
    process = start(tmp_path, "toy")
    _, message = process.communicate()
    assert process.returncode == 1
    expected = "stage toy: the sky is green; paint it blue (results/failed/toy.ipynb shows where)"
    assert message.strip().splitlines()[-1] == expected
    assert "Traceback" not in message
    assert (tmp_path / "results/failed/toy.ipynb").exists()
    assert not (tmp_path / "results/chapters").exists()
    assert not (tmp_path / "results/times").exists()


@pytest.mark.ci
def test_a_killed_notebook_leaves_nothing_half_written(tmp_path: Path) -> None:
    import pandas as pd

    study(
        tmp_path,
        "import pandas as pd\nfrom memlib import files\n"
        "for i in range(10**6):\n    files.write_table('tables/table.parquet', pd.DataFrame({'i': [i] * 10**5}))\n"
        "    files.write_json('metrics/toy.json', list(range(10**5)))",
    )
    for wait in (0.3, 0.517):
        process = start(tmp_path, "toy")
        while not (tmp_path / "metrics/toy.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kill_kernels_of(tmp_path)
        assert len(pd.read_parquet(tmp_path / "tables/table.parquet")) == 10**5
        assert read_json(tmp_path / "metrics/toy.json") == list(range(10**5))
        assert not (tmp_path / "results/chapters").exists()
        assert not (tmp_path / "results/times").exists()


def kill_kernels_of(folder: Path) -> None:
    """Kill the Jupyter kernels that work in a folder: they outlive the process that started them for a moment."""
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "ipykernel_launcher" in " ".join(process.info["cmdline"] or []) and process.cwd() == str(folder):
                process.kill()
                process.wait(5)
        except psutil.Error:
            continue
