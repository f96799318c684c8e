"""Parameters, stages, notebooks and files."""

import ast
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from memlib import claims, files, pipeline, plotting, profiles
from memlib.statistics import Estimate

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
RUNNER = {"pipeline", "progress"}  # run a stage and tell how far it is, but decide no result


def imports(source: str) -> set[str]:
    """Modules of memlib that a source imports at its top (what is imported within a function only checks parameters)."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes if node.module == "memlib" for alias in node.names} | {
        node.module.split(".")[1] for node in nodes if (node.module or "").startswith("memlib.")
    }


def all_imports(source: str) -> set[str]:
    """Modules of memlib that a source imports, directly or through others, but for the runner."""
    found, todo = set(), imports(source) - RUNNER
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= imports((ROOT / f"memlib/{name}.py").read_text()) - RUNNER - found
    return found


def code(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_exactly_the_modules_it_uses(name: str) -> None:
    notebook = ROOT / f"notebooks/{name}.ipynb"
    if notebook.exists():
        expected = all_imports(code(notebook))
    else:
        program = re.search(r"-m memlib\.(\w+)", STAGES[name]["cmd"])[1]
        expected = all_imports(f"from memlib import {program}") if name != "book" else set()
    if name in ("study", "reproducibility"):
        expected |= {"pipeline"}
    if name == "study":
        expected = {"pipeline"}
    if name == "reproducibility":
        expected |= all_imports((ROOT / "memlib/pipeline.py").read_text())
    listed = {Path(dep).stem for dep in STAGES[name]["deps"] if dep.startswith("memlib/")}
    assert listed == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert notebook.cells[0].source.startswith("# ")
    assert f"notebooks/{path.stem}.ipynb" in STAGES[path.stem]["deps"]
    parameters = pipeline.notebook_parameters(path)
    assert STAGES[path.stem]["params"][0] == path.stem or not parameters
    functions = [node for node in ast.walk(ast.parse(code(path))) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert not functions, "no method is implemented inside a notebook"


def test_every_page_is_a_dependency_of_the_book() -> None:
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    pages = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    deps = STAGES["book"]["deps"]
    assert all(f"book/{page}.md" in deps or page.startswith("chapters/") for page in pages)
    assert "book/chapters" in deps
    assert {page for page in pages if page.startswith("chapters/")} == {f"chapters/{path.stem}" for path in NOTEBOOKS}


def test_claims_are_collected_from_every_chapter_that_settles_one() -> None:
    settling = {f"metrics/{path.stem}.json" for path in NOTEBOOKS if "claims.settled(" in code(path)}
    assert settling <= set(STAGES["claims"]["deps"])


def test_the_committed_results_are_those_of_the_committed_code() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    changed = {
        dep["path"]
        for stage in lock.values()
        for dep in stage.get("deps", [])
        if dep["path"].startswith(("memlib/", "notebooks/"))
        and hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest() != dep["md5"]
    }
    assert not changed, "run `dvc repro`, then commit metrics/ and dvc.lock with the code"


def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sections: dict | None) -> Path:
    monkeypatch.chdir(ROOT)
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, content in sections.items():
        if content is None:
            del parameters[section]
        else:
            merged = parameters.get(section, {}) | content
            parameters[section] = {name: value for name, value in merged.items() if value is not None}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(parameters))
    return path


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"volume": {"direction": 3, "directions": None}}, "unknown parameter 'direction'; did you mean 'directions'"),
        ({"trian": {"steps": 3}, "train": None}, "unknown section 'trian'; did you mean 'train'"),
        ({"volume": {"directions": None}}, "section volume of .* has no parameter 'directions'"),
        ({"train": {"steps": 0}}, "train.steps is 0; it must be larger than 0"),
        ({"train": {"learning_rate": "1e-3"}}, "train.learning_rate in .* is '1e-3'; it must be of type float"),
        ({"train": {"channels": 32}}, "train.channels in .* is 32; it must be of type list"),
        ({"volume": {"steps": True}}, "volume.steps in .* is True; it must be of type int"),
        ({"train": {"precision": "fp8"}}, "train.precision is 'fp8'"),
        ({"mixtures": None}, "has no section 'mixtures'"),
        ({"retrain": {"step": 3}}, "section retrain of .* has an unknown parameter 'step'; did you mean 'steps'"),
        ({"retrain": {"steps": 0}}, "train.steps is 0; it must be larger than 0"),
    ],
)
def test_parameters_that_nothing_reads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict, message: str
) -> None:
    path = changed(tmp_path, monkeypatch, **sections)
    with pytest.raises(ValueError, match=message):
        pipeline.check_parameters(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"volume": {"sigma_min": 0.001}}, r"volume.sigma_min is 0.001; the schedule goes from 0.01 to 157.4"),
        ({"volume": {"method": "rk4"}}, "unknown ODE method 'rk4'; known: euler, heun"),
        ({"data": {"name": "openmojis"}}, "unknown data.name 'openmojis'; did you mean 'openmoji'"),
        (
            {"data": {"copies": {"train": {16: 999}, "reference": {}, "retrain": {}}}},
            "999 pictures are to be planted in the split train, which holds only",
        ),
        (
            {"data": {"copies": {"train": {}, "reference": {}, "retrain": {}, "trian": {16: 9}}}},
            "unknown split 'trian'; did you mean 'train'",
        ),
        ({"data": {"copies": {"train": {16: 9}}}}, "data.copies has no split 'reference'; give it {} for none planted"),
        ({"frontier": {"axes": [2, 4]}}, "frontier.axes is .*; it must hold 1"),
        ({"flow": {"steps": [64, 16]}}, "flow.steps is .*; it must be at least two rising numbers"),
        ({"repeats": {"unseen": 999}}, "repeats.unseen is 999 but data.splits.heldout only"),
        ({"peaks": {"powers": [0.5, 1.0]}}, r"peaks.powers is \[0.5, 1.0\]; all must be at least 1"),
        ({"landscape": {"powers": [2.0]}}, r"landscape.powers is \[2.0\]; it must hold 1, which a claim is judged by"),
        ({"peaks": {"levels": [0.1, 100.0]}}, "the last level of peaks is 306.25; the schedule goes"),
        ({"flux": {"levels": [1e-5]}}, "flux.levels is 1e-05; the schedule goes"),
        ({"data": {"splits": {"train": 9, "heldout": 9, "reference": 9}}}, "data.splits .* has no split 'retrain'"),
        ({"run": {"arms": ["growth-dorp"]}}, "run.arms has an unknown modification 'dorp'; did you mean 'drop'"),
        ({"run": {"arms": ["growth-drop"]}}, "run.arms has no 'random-drop', with which the chapters compare"),
        ({"run": {"seeds": [1, 2]}}, "run.seeds has no 0"),
        ({"frontier": {"levels": [0.1, 1e9]}}, "frontier.levels is 1000000000.0; the schedule goes from"),
        ({"data": {"size": 18}}, "pictures of 18 pixels do not halve 2 times"),
        ({"drawings": {"size": 30}}, "pictures of 30 pixels do not halve 2 times; change drawings.size"),
        (
            {"drawings": {"triggers": {960: 999}}},
            r"999 pictures are to be planted in the split train \(drawings.triggers\)",
        ),
        ({"drawings": {"triggers": {}}}, "the largest number of copies must be the same in both"),
        ({"drawings": {"triggers": {160: 6}}}, "the largest number of copies must be the same in both"),
        ({"drawings": {"copies": {960: 1}}}, "with at least two pictures each"),
        ({"run": {"text_arms": {"base": {}}}}, "run.text_arms has an arm 'base'"),
        ({"detection": {"regime_generations": 17}}, "detection.regime_generations is 17; .* noises for 16"),
        ({"detection": {"late_guidances": [1.0]}}, "detection.late_guidances is .* needs a guidance above 1"),
        ({"text_audit": {"precision": "fp16"}}, "text_audit.precision is 'fp16'; known: float32, float16"),
        ({"text_audit": {"runs": {60: 1}}}, "text_audit.runs is .* with more steps than"),
        ({"text_audit": {"guidance": 1.0}}, "text_audit.guidance is 1.0"),
        ({"drawings": {"copies": {960: 99}}}, "99 pictures are to be planted in the split planted, which holds only"),
        ({"drawings": {"subjects": {"train": 9, "planted": 9}}}, "drawings.subjects .* has no split 'unseen'"),
        ({"text": {"channels": [32] * 5, "attention": [True] * 5}}, "latents of 8 numbers a side do not halve 4 times"),
        ({"latent": {"levels": [99.0]}}, "latent.levels is 99.0; the schedule goes from 0.02917 to 14.61"),
        ({"detection": {"arms": ["planted", "variod"]}}, "detection needs the arm 'variod', .* did you mean 'varied'"),
        ({"run": {"text_arms": {"planted": {"steps": 0}}}}, "text.steps is 0"),
        ({"run": {"text_arms": {"planted": {"step": 9}}}}, "run.text_arms.planted .* unknown parameter 'step'"),
        ({"run": {"text_arms": {"planted": {}}}}, "detection needs the arm 'varied'"),
        ({"detection": {"runs": {1: 4, 10: 4}}}, "detection.runs is .*; it must hold 1 step, and all 50 of them"),
        ({"training_mitigation": {"arms": ["planted"]}}, "training_mitigation.arms has no 'threshold'"),
        (
            {"training_mitigation": {"main_guidance": 9.0}},
            "training_mitigation.guidances is .*; it must hold main_guid",
        ),
        ({"text_audit": {"suspected": "mine.txt"}}, "there is no prompt file mine.txt"),
    ],
)
def test_values_that_a_later_stage_would_refuse_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict, message: str
) -> None:
    changed(tmp_path, monkeypatch, **sections)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        pipeline.check_study()


def test_the_parameters_of_the_study_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pipeline.check_study()
    assert pipeline.read_parameters("data")["name"] == "openmoji"


def test_stages_of_a_matrix_have_names_and_places_in_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {
        "make": {"cmd": "true", "outs": ["results/sets"]},
        "try": {
            "matrix": {"set": ["a", "b"], "seed": "${run.seeds}"},
            "cmd": "true",
            "deps": ["results/sets/${item.set}"],
            "outs": ["results/tries/${item.set}-${item.seed}"],
        },
        "sum": {"cmd": "true", "deps": ["results/tries"]},
        "each": {
            "foreach": "${run.kinds}",
            "do": {"cmd": "true", "deps": ["results/sets"], "outs": ["results/kinds/${key}"]},
        },
        "kind": {"cmd": "true", "deps": ["results/kinds/x"]},
        "look": {"cmd": "true", "deps": ["results/tries/a-1"]},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (tmp_path / "params.yaml").write_text("run: {seeds: [1, 2], kinds: {x: {}, y: {n: 1}}}")
    monkeypatch.chdir(tmp_path)
    names = pipeline.stage_names(tmp_path / "dvc.yaml")
    assert names == ["make", "try@a-1", "try@a-2", "try@b-1", "try@b-2", "sum", "each@x", "each@y", "kind", "look"]
    figure = plotting.stage_graph(tmp_path / "dvc.yaml")
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["make"] > heights["try"] > heights["sum"] == heights["look"] == heights["kind"]
    assert heights["each"] == heights["try"]


def test_a_profile_is_laid_over_a_copy_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    suspected, ordinary = tmp_path / "suspected.jsonl", tmp_path / "ordinary.txt"
    suspected.write_text('{"caption": "a red apple"}')
    ordinary.write_text("the whale")
    mine = {"text_audit": {"suspected": os.path.relpath(suspected), "ordinary": os.path.relpath(ordinary)}}
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        folder = tmp_path / path.stem
        profiles.project_copy(folder, [profiles.read_profile(path.stem), mine])
        monkeypatch.chdir(folder)
        pipeline.check_study()
        monkeypatch.chdir(ROOT)
    smoke = yaml.safe_load((tmp_path / "smoke/params.yaml").read_text())
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert smoke["train"] == default["train"] | profiles.read_profile("smoke")["train"]
    for name in ("dvc.lock", "metrics/volume.json", "book/_static/growth.png"):
        assert (ROOT / name).exists()
        assert not (tmp_path / "smoke" / name).exists(), "results of the default study are no sources"
    assert (tmp_path / "smoke/memlib/ode.py").exists()
    with pytest.raises(ValueError, match="there is no profile 'cifar'; did you mean 'cifar10'"):
        profiles.read_profile("cifar")


def toy_study(folder: Path, body: str) -> None:
    """A study of one notebook, with the parameters that all the others need."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# Toy"),
        v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(body),
    ]
    (folder / "notebooks").mkdir(parents=True)
    nbformat.write(
        v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / "notebooks/toy.ipynb"
    )
    study = yaml.safe_load((ROOT / "params.yaml").read_text())
    common = {name: study[name] for name in ("run", *pipeline.TRAININGS, *pipeline.LAID_OVER)}
    (folder / "params.yaml").write_text(yaml.safe_dump(common | {"toy": {"n": 7}}))


def run_toy(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "memlib.pipeline", "notebook", "toy"]
    return subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def test_two_runs_of_a_notebook_are_the_same_bytes(tmp_path: Path) -> None:
    body = "import sys, time\nprint('n is', n)\ntime.sleep(0.1)\nprint('progress', file=sys.stderr)\nprint('twice')\nn"
    outputs = []
    for name in ("first", "second"):
        toy_study(tmp_path / name, body)
        process = run_toy(tmp_path / name)
        assert process.wait() == 0
        assert "progress" in process.stderr.read()
        outputs.append((tmp_path / name / "book/chapters/toy.ipynb").read_bytes())
        times = files.read_json(tmp_path / name / "results/times/toy.json")
        assert 0 < times["seconds"] < 60
        assert times["peak_memory_mib"] > 10
    assert outputs[0] == outputs[1]
    notebook = nbformat.reads(outputs[0].decode(), as_version=4)
    assert notebook.cells[-1].outputs[0].text == "n is 7\ntwice\n"


def test_a_refused_input_is_one_sentence(tmp_path: Path) -> None:
    toy_study(tmp_path, "raise ValueError('the sky is green; paint it blue')")
    process = run_toy(tmp_path)
    _, message = process.communicate()
    assert process.returncode == 1
    assert (
        message.strip().splitlines()[-1]
        == "stage toy: the sky is green; paint it blue (results/failed/toy.ipynb shows where)"
    )
    assert not (tmp_path / "book").exists()
    assert (tmp_path / "results/failed/toy.ipynb").exists()


def test_a_killed_notebook_leaves_nothing_half_written(tmp_path: Path) -> None:
    body = (
        "import pandas as pd, time\nfrom memlib import files\n"
        "for i in range(10**6):\n    files.write_table('results/table.parquet', pd.DataFrame({'i': [i] * 10**5}))\n"
        "    files.write_json('metrics/toy.json', list(range(10**5)))"
    )
    toy_study(tmp_path, body)
    for wait in (0.3, 0.517):
        process = run_toy(tmp_path)
        while not (tmp_path / "metrics/toy.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kill_kernels_of(tmp_path)
        import pandas as pd

        assert len(pd.read_parquet(tmp_path / "results/table.parquet")) == 10**5
        assert files.read_json(tmp_path / "metrics/toy.json") == list(range(10**5))
        assert not (tmp_path / "book").exists()
        assert not (tmp_path / "results/times").exists()
    with files.whole_file(tmp_path / "results/table.parquet") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in (tmp_path / "results").glob(".*.tmp")] == [], "what a kill has left is cleared"


def kill_kernels_of(folder: Path) -> None:
    """Kill the Jupyter kernels that work in a folder: they outlive the process that started them for a moment."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        try:
            if "ipykernel_launcher" in " ".join(process.info["cmdline"] or []) and process.cwd() == str(folder):
                process.kill()
                process.wait(5)
        except psutil.Error:
            continue


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with files.whole_file(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    with pytest.raises(KeyError), files.whole_file(target) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("broken")
        raise KeyError
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_kill_at_any_moment_leaves_a_folder_whole_or_absent(tmp_path: Path) -> None:
    program = (
        "import itertools\nfrom memlib import files\n"
        "for i in itertools.count():\n"
        "    with files.whole_file('folder') as new:\n"
        "        new.mkdir()\n"
        "        for j in range(30): (new / str(j)).write_text(str(i))\n"
    )
    seen = set()
    for wait in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        while process.poll() is None and not (tmp_path / "folder").exists():
            time.sleep(0.001)
        time.sleep(0.1 + wait * 0.00137)
        process.kill()
        process.wait()
        contents = [path.read_text() for path in (tmp_path / "folder").glob("*")]
        assert len(contents) in (0, 30)
        assert len(set(contents)) <= 1
        seen.add(len(contents))
    assert 30 in seen
    with files.whole_file(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_named_tuples_become_objects_at_any_depth(tmp_path: Path) -> None:
    estimate = Estimate(0.5, 0.4, 0.6)
    files.write_json(tmp_path / "m.json", {"a": estimate, "b": [{"c": estimate}, 1, None], "d": {"e": [estimate]}})
    plain = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert files.read_json(tmp_path / "m.json") == {"a": plain, "b": [{"c": plain}, 1, None], "d": {"e": [plain]}}


def test_claims_are_judged_by_their_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert claims.judge(Estimate(0.8, 0.7, 0.9), 0.5) == "reproduced"
    assert claims.judge(Estimate(0.8, 0.7, 0.9), 0.5, also=False) == "inconclusive"
    assert claims.judge(Estimate(0.55, 0.45, 0.6), 0.5) == "inconclusive"
    assert claims.judge(Estimate(0.3, 0.2, 0.4), 0.5) == "not reproduced"
    entry = claims.settled(
        "volume.trained_above_unseen", Estimate(0.8, 0.7, 0.9), "reproduced", Estimate(0.9, 0.85, 0.95)
    )
    files.write_json(tmp_path / "metrics/volume.json", {"claims": [entry]})
    collected = {claim["id"]: claim for claim in claims.collect(tmp_path / "metrics")}
    assert collected["volume.trained_above_unseen"]["value"] == 0.8
    assert collected["text.first_step_detects"]["verdict"] == "open"
    assert len(collected) == 14
    table = claims.table(list(collected.values()))
    assert "| [**reproduced**](chapters/volume.ipynb) | AUROC 0.800 [0.700, 0.900] | 0.900 [0.850, 0.950] |" in table
    (shown,) = claims.verdicts([entry]).to_dict("records")
    assert shown["verdict"] == "reproduced"
    assert shown["claim"] == collected[entry["id"]]["claim"]
    assert shown["found here"] == "AUROC 0.800 [0.700, 0.900]"
    assert all(claim["criterion"] in table for claim in collected.values())
    with pytest.raises(ValueError, match="there is no claim 'volume.trained'; did you mean"):
        claims.settled("volume.trained", Estimate(0, 0, 0), "reproduced", Estimate(0, 0, 0))


def test_committed_claims_are_those_of_the_committed_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert files.read_json("metrics/claims.json") == claims.collect()


def test_every_citation_is_in_the_bibliography() -> None:
    keys = {line.split("{")[1].rstrip(",\n") for line in (ROOT / "book/references.bib").open() if line.startswith("@")}
    registry = claims.read_registry(ROOT / "book/claims.yml")
    assert {entry["paper"] for entry in registry.values()} <= keys
