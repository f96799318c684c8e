"""The claims: how they are read, judged, collected and shown."""

import contextlib
import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from statsmodels.stats.multitest import multipletests

from memlib.evaluation import claims as verdicts
from memlib.evaluation import measures, roc
from memlib.evaluation.intervals import Estimate, mean_share, proportion
from memlib.evaluation.measured import Difference
from memlib.evaluation.split import choice_difference, choose, stratified_split
from memlib.files import read_json, write_json, write_table
from memlib.study import cases, claims, criteria, history
from memlib.tables import read_scores

ROOT = Path(__file__).parent.parent
AUROC = {
    "says": "AUROC | of growth",
    "statistic": "AUROC",
    "above": 0.5,
    "items": "tables/items.parquet",
    "trainings": ["main"],
    "positive": "copies > 0",
    "negative": "copies == 0",
    "first": {"table": "tables/scores/{training}-growth.parquet", "setting": {"sigma": 1}},
    "baseline": {"first": {"table": "tables/scores/{training}-loss.parquet"}},
    "at_least": {"positive": 20, "negative": 20},
    "seed": 3,
}
SHARE = {
    "says": "Share copied",
    "statistic": "share",
    "above": 0.0,
    "items": "tables/items.parquet",
    "join": [{"table": "tables/samples/{training}.parquet", "where": "guidance == 3"}],
    "among": "copies > 0",
    "trainings": ["random-0", "random-1", "random-2"],
    "first": {"outcome": "copied > 0"},
    "minus": {"outcome": "copied > 0", "trainings": ["arm-0", "arm-1"]},
    "baseline": {
        "first": {"outcome": "copied > 0"},
        "minus": {"outcome": "copied > 0", "trainings": ["arm-1", "arm-0"]},
    },
    "at_least": {"items": 20},
    "seed": 5,
}
GROWTH = {"table": "tables/scores/{training}-growth.parquet"}
REGISTRY = {
    "volume": {
        "grows": {
            "paper": "hasegawa2025",
            "claim": "Training images grow more | much more.",
            "plain": "the loss",
            "page": "chapters/growth.ipynb",
            "criterion": AUROC,
        },
        "helps": {
            "paper": "hasegawa2025",
            "claim": "Leaving out helps.",
            "variant": True,
            "plain": "the other order",
            "page": "chapters/growth.ipynb",
            "criterion": SHARE,
        },
    }
}


def write_registry(change: Callable[[dict[str, Any]], Any] = lambda registry: None) -> None:
    """Write the registry with a change to its sections."""
    registry = copy.deepcopy(REGISTRY)
    change(registry["volume"])
    Path("book").mkdir(exist_ok=True)
    criteria.REGISTRY.write_text(yaml.safe_dump(registry, sort_keys=False))


def write_scores(name: str, settings: dict[str, np.ndarray], items: pd.Index) -> None:
    rows = [
        {"item": item, "setting": setting, "score": value, "evaluations": 2, "note": ""}
        for setting, values in settings.items()
        for item, value in zip(items, values, strict=True)
    ]
    write_table(f"tables/scores/{name}.parquet", pd.DataFrame(rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two claims with the tables that settle them, without git."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        make()
    return folder


@pytest.fixture(scope="module")
def made_and_judged(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(made, tmp_path_factory.mktemp("judged") / "project")
    with contextlib.chdir(folder):
        claims.judge_all()
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The project as a test's own; gives its items."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path, dirs_exist_ok=True))
    return pd.read_parquet("tables/items.parquet")


@pytest.fixture
def judged(made_and_judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project as a test's own, all claims judged."""
    monkeypatch.chdir(shutil.copytree(made_and_judged, tmp_path, dirs_exist_ok=True))


def make() -> None:
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"id": [f"i{k}" for k in range(60)], "copies": np.repeat([16, 1, 0], 20)})
    items["role"] = np.repeat(["random-0", "random-1", "arm-0"], 20)
    write_table("tables/items.parquet", items)
    shift = (items["copies"] > 0).to_numpy()
    for training in ("main", "again"):
        levels = {f"draws=2 sigma={s:g}": (rng.normal(size=60) + s * shift).round(3) for s in (0.5, 1, 1.5)}
        write_scores(f"{training}-growth", levels, items["id"])
        write_scores(f"{training}-loss", {"sigma=1": rng.normal(size=60).round(3)}, items["id"])
    for training in ("random-0", "random-1", "random-2", "arm-0", "arm-1"):
        chance = 0.7 if training.startswith("random") else 0.3
        samples = pd.DataFrame({"id": np.repeat(items["id"], 2), "guidance": np.tile([3.0, 7.5], 60)})
        write_table(f"tables/samples/{training}.parquet", samples.assign(copied=rng.random(120) < chance))
    write_registry()


def test_claims_are_judged_by_their_intervals() -> None:
    assert verdicts.judge(Estimate(0.8, 0.7, 0.9), 0.5) == "reproduced"
    assert verdicts.judge(Estimate(0.55, 0.45, 0.6), 0.5) == "inconclusive"
    assert verdicts.judge(Estimate(0.55, 0.5, 0.6), 0.5) == "inconclusive"
    assert verdicts.judge(Estimate(0.55, 0.45, 0.6), 0.5, decidable=False) == "underpowered"
    assert verdicts.judge(Estimate(0.3, 0.2, 0.4), 0.5) == "not reproduced"
    assert verdicts.judge(Estimate(0.3, 0.2, 0.4), 0.5, decidable=False) == "not reproduced"


def test_a_corrected_p_value_can_only_take_a_verdict_back() -> None:
    for verdict in ("reproduced", "not reproduced", "inconclusive", "underpowered"):
        assert verdicts.after_correction(verdict, 0.01) == verdict
        kept = verdict if verdict == "underpowered" else "inconclusive"
        assert verdicts.after_correction(verdict, 0.2) == kept


def test_few_items_settle_nothing() -> None:
    six = verdicts.settle(measures.auroc([4.0, 3, 5, 1, 2, 0], [True] * 3 + [False] * 3), 0.9)
    assert (six["verdict"], six["detectable"]) == ("underpowered", None)
    assert six["p_value"] > 0.05
    many = verdicts.settle(measures.share(np.arange(100) < 80), 0.5)
    assert many["verdict"] == "reproduced"
    assert many["value"] == 0.8
    assert many["p_value"] < 1e-5
    assert 0.6 < many["detectable"] < 0.7


def test_claims_are_collected_with_their_criteria_and_corrected_together(judged: None) -> None:
    grows, helps = read_json("metrics/claims.json")
    scores = pd.read_parquet("tables/scores/main-growth.parquet").query("setting == 'draws=2 sigma=1'")["score"]
    expected = measures.auroc(scores, np.arange(60) < 40, seed=3, resamples=cases.RESAMPLES)
    assert [grows["value"], *grows["ci95"]] == pytest.approx(expected.interval(), abs=1e-4)
    assert grows["items"] == {"positive": 40, "negative": 20}
    assert helps["items"] == {"items": 40}
    assert grows["criterion"] == {
        "digest": criteria.digests(criteria.REGISTRY.read_text())["volume.grows"],
        "commit": "unknown",
        "day": None,
    }
    loss = pd.read_parquet("tables/scores/main-loss.parquet")["score"]
    assert grows["baseline_ci95"] == pytest.approx(roc.auroc(loss[:40], loss[40:], 3)[1:], abs=0.012)
    corrected = multipletests([grows["p_value"], helps["p_value"]], method="holm")[1]
    assert [grows["holm_p_value"], helps["holm_p_value"]] == pytest.approx(corrected, rel=0.01)
    first = Path("metrics/claims.json").read_bytes(), Path("book/generated/claims.md").read_bytes()
    claims.judge_all()
    assert first == (Path("metrics/claims.json").read_bytes(), Path("book/generated/claims.md").read_bytes())


def test_shares_of_two_arms_are_those_of_their_tables(project: pd.DataFrame) -> None:
    found, _ = cases.measure(cases.read_cases("volume.helps", criteria.read_claims()["volume.helps"].criterion))

    def copied(training: str) -> np.ndarray:
        samples = pd.read_parquet(f"tables/samples/{training}.parquet").query("guidance == 3")
        return samples.set_index("id")["copied"][project["id"][:40]].to_numpy()

    control = np.column_stack([copied(f"random-{k}") for k in range(3)])
    arm = np.column_stack([copied(f"arm-{k}") for k in range(2)])
    expected = Difference(measures.share(control, 5), measures.share(arm, 5), same_trainings=False)
    assert found.interval() == expected.interval()
    assert found.largest == pytest.approx(control.mean()), "had nothing been copied in the other arm"


def test_a_picture_is_named_in_time_no_later_than_its_copies(project: pd.DataFrame) -> None:
    """By the study's own criterion: of four pictures in five copied at 100, three are named at 50 or 100, the fourth at 150."""
    study = yaml.safe_load((ROOT / "book/claims.yml").read_text())
    criteria.REGISTRY.write_text(yaml.safe_dump({"monitor": study["monitor"]}))
    n, nulls = 40, 160
    ids = [f"p{row}" for row in range(n)]
    copied_at = pd.Series([100.0, 100, 100, 100, np.nan] * (n // 5), ids, name="copied_at")
    copied_at.iloc[0] = 0.0  # by the model that is yet to be trained: no case
    named_at = pd.Series([50, 50, 100, 150, 50] * (n // 5), ids)
    noise, rows = np.random.default_rng(0).normal(size=n + nulls), []
    for step in (0, 50, 100, 150):
        scores = noise.copy()
        scores[:n] += 100 * (named_at <= step)
        part = {"step": step, "detector": "loss", "item": [*ids, *(f"h{row}" for row in range(nulls))]}
        rows.append(pd.DataFrame(part | {"score": scores + 0.01 * step * noise}))
    scores = pd.concat(rows)
    write_table("tables/fine_tuning/scores.parquet", scores.assign(trained=scores["item"].isin(ids)))
    write_table("tables/fine_tuning/pictures.parquet", copied_at.rename_axis("id").reset_index())
    read = cases.read_cases(
        "monitor.named_before_copied", criteria.read_claims()["monitor.named_before_copied"].criterion
    )
    found, _ = cases.measure(read)
    assert read.counts == {"items": 31}
    assert found.value == pytest.approx(23 / 31)


def test_settings_are_chosen_on_one_half_and_reported_on_the_other(project: pd.DataFrame) -> None:
    growth, loss = ({"table": f"tables/scores/{{training}}-{name}.parquet"} for name in ("growth", "loss"))
    split = {"split": {"seed": 1, "by": ["copies"]}, "first": growth, "minus": loss}
    write_registry(
        lambda volume: volume["grows"]["criterion"].update(split | {"at_least": {"positive": 20, "negative": 10}})
    )
    read = cases.read_cases("volume.grows", criteria.read_claims()["volume.grows"].criterion)
    found, chosen = cases.measure(read)
    tables = [
        pd.read_parquet(f"tables/scores/main-{name}.parquet").pivot(index="item", columns="setting", values="score")
        for name in ("growth", "loss")
    ]
    contrast = (project["copies"] > 0).to_numpy(), (project["copies"] == 0).to_numpy()
    half = stratified_split(project["copies"], np.zeros(60), 1)
    first, minus = (choose(table.loc[project["id"]], contrast, half, 3) for table in tables)
    assert chosen == {"first": first.setting}
    assert found.interval() == choice_difference(first, minus, 3)
    assert read.counts == {"positive": 20, "negative": 10}


def test_trainings_count_their_items_once(project: pd.DataFrame) -> None:
    write_registry(lambda volume: volume["grows"]["criterion"].update(trainings=["main", "again"]))
    read = cases.read_cases("volume.grows", criteria.read_claims()["volume.grows"].criterion)
    assert read.counts == {"positive": 40, "negative": 20}
    found, _ = cases.measure(read)
    assert len(found.by_training) == 2
    assert len(found.deviations) == 60
    assert np.ptp(found.interval()) > np.ptp(found.over_items())


def test_an_average_is_of_scores_or_of_aurocs_in_the_papers_unit_where_asked(project: pd.DataFrame) -> None:
    scores = pd.read_parquet("tables/scores/main-growth.parquet").pivot(index="item", columns="setting", values="score")
    scores, label = scores.loc[project["id"]], (project["copies"] > 0).to_numpy()
    whole = {"table": "tables/scores/{training}-growth.parquet"}
    for side, expected in (
        (whole | {"average": "scores"}, scores.mean(axis=1)),
        (whole | {"average": "aurocs"}, scores),
        (whole | {"average": "scores", "per_sigma": True}, (scores / [0.5, 1, 1.5]).mean(axis=1)),
    ):
        write_registry(lambda volume, side=side: volume["grows"]["criterion"].update(first=side))
        found, _ = cases.measure(cases.read_cases("volume.grows", criteria.read_claims()["volume.grows"].criterion))
        assert found.interval() == measures.auroc(expected, label, seed=3, resamples=cases.RESAMPLES).interval()


def update(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda volume: volume[name]["criterion"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["grows"].pop("criterion"), "the claim 'volume.grows' has no criterion; state one before the run"),
        (lambda v: v["grows"].update(measure="x"), "volume.grows.measure: Extra inputs are not permitted"),
        (update("grows", above="high"), "volume.grows.criterion.above: Input should be a valid number"),
        (update("grows", negative=None), "an AUROC needs queries for `positive` and `negative`"),
        (
            lambda v: v["grows"]["criterion"].pop("baseline"),
            "volume.grows.criterion.baseline: Field required",
        ),
        (
            update("helps", minus={"outcome": "copied > 0", "trainings": ["arm-0"]}),
            "a difference over trainings needs two of either side or more",
        ),
        (update("helps", first={"outcome": "copied / 0 * 0"}), "has items without an outcome .training random-0"),
        (
            update("helps", among='copies == 16 or role == "{training}"'),
            "compares trainings that are not of the same items",
        ),
        (update("grows", at_least={"items": 20}), "`at_least` must say how many of: negative, positive"),
        (update("helps", minus={"method": "x"}), "each side of a criterion by share needs its `outcome`"),
        (update("helps", statistic="agreement"), "each side of a criterion by agreement needs its `method`"),
        (
            update("grows", at_least={"positive": 41, "negative": 20}),
            "at least 41 items .positive., and the tables hold 40",
        ),
        (update("grows", positive="copies == 4"), "items with 'copies == 4', and the tables hold none .training main."),
        (
            update("grows", positive="copied > 0"),
            "'copied > 0', which the tables cannot answer .*their columns are copies",
        ),
        (update("grows", negative="copies <= 1"), "items that are both positive and negative, such as 'i20'"),
        (update("grows", items="tables/none.parquet"), "is judged on tables/none.parquet, which is not there"),
        (
            update("grows", first=GROWTH | {"setting": {"sigma": 3}}),
            "{'sigma': 3}, which no setting of .*main-growth",
        ),
        (update("grows", first=GROWTH), "finds 3 settings in .*growth.parquet and no split to choose one on"),
        (
            update("grows", baseline={"first": {"table": "tables/none.parquet"}}),
            "on tables/none.parquet, which is not there",
        ),
        (
            update("grows", first=GROWTH | {"trainings": ["main"]}),
            "only the sides of a share have trainings of their own",
        ),
        (
            update("grows", control=GROWTH | {"trainings": ["main", "again"]}),
            "a control needs as many trainings as the criterion has",
        ),
        (update("helps", control=GROWTH), "only an AUROC has a control"),
        (update("grows", control={"table": "tables/none.parquet"}), "on tables/none.parquet, which is not there"),
        (update("helps", trainings=["random-0", "random-9"]), "on tables/samples/random-9.parquet, which is not there"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_before_any_is(
    project: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, change: Callable, message: str
) -> None:
    write_registry(change)
    monkeypatch.setattr(claims, "committed_criteria", lambda: dict.fromkeys(criteria.read_claims(), "0e2ecd3"))
    monkeypatch.setattr(history, "has_history", lambda: True)
    monkeypatch.setattr(history, "is_committed", lambda path: True)
    monkeypatch.setattr(cases, "measure", lambda *_: pytest.fail("a claim was measured"))
    with pytest.raises(ValueError, match=message) as refused:
        claims.collect()
    assert "\n" not in str(refused.value)


def test_items_of_one_cluster_are_drawn_again_together(project: pd.DataFrame) -> None:
    write_table("tables/items.parquet", project.assign(subject=np.arange(60) // 4))
    write_registry(lambda volume: volume["grows"]["criterion"].update(cluster="subject"))
    found, _ = cases.measure(cases.read_cases("volume.grows", criteria.read_claims()["volume.grows"].criterion))
    assert len(found.deviations) == 15
    assert found.if_found(0.8)[1:] == measures.newcombe(0.8, 10, 5)


def test_a_criterion_that_is_not_committed_is_refused(project: pd.DataFrame) -> None:
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    first = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert [row["criterion"]["commit"] for row in claims.collect()] == [first, first]
    write_registry(update("helps", above=0.1))
    with pytest.raises(
        ValueError, match="'volume.helps' would be newer than its result: commit book/claims.yml before"
    ):
        claims.collect()
    write_registry(lambda volume: volume["helps"].update(claim="It does."))
    assert [row["criterion"]["commit"] for row in claims.collect()] == [first, first], "another wording"


def test_in_another_study_what_cannot_be_judged_stays_open(project: pd.DataFrame) -> None:
    write_registry(update("grows", at_least={"positive": 400, "negative": 20}))
    claims.judge_all()
    grows, helps = read_json("metrics/claims.json")
    assert grows["verdict"] == "open"
    assert "the tables hold 40" in grows["reason"]
    assert helps["holm_p_value"] == helps["p_value"]
    assert (
        "{cite}`hasegawa2025` | [**open**](chapters/growth.ipynb) |  |" in Path("book/generated/claims.md").read_text()
    )


def test_the_table_says_what_was_found_and_how_it_was_judged(judged: None) -> None:
    grows, _ = read_json("metrics/claims.json")
    page = Path("book/generated/claims.md").read_text()
    found, beyond = (Estimate(grows[f"{part}value"], *grows[f"{part}ci95"]) for part in ("", "beyond_baseline_"))
    n = f"{grows['items']['positive']} + {grows['items']['negative']}"
    said = {True: "yes", False: "no, worse", None: "not shown"}[
        True if beyond.low > 0 else False if beyond.high < 0 else None
    ]
    row = f"| [**reproduced**](chapters/growth.ipynb) | AUROC {found} | above 0.5 | {n} | {said}: "
    row += f"difference {beyond:+} to the loss | "
    assert page.startswith(f"| {' | '.join(claims.HEADER)} |")
    assert row in page
    fold = page.partition(row)[2].splitlines()[0]
    assert fold.startswith(
        "<details><summary>Criterion</summary>AUROC \\| of growth; reproduced if its whole 95 % interval"
    )
    assert "items. p = 0.0" in fold, "without history there is no date"
    dated = grows | {"criterion": {"day": "2026-11-20", "commit": "0123456789abcdef"}}
    assert "items. Committed on 2026-11-20 (`0123456`); p = 0.0" in claims.first_page([dated])
    baseline = Estimate(grows["baseline_value"], *grows["baseline_ci95"])
    assert f"; plain baseline {baseline}; detectable {grows['detectable']:.3f}.</details>" in fold


def test_a_method_is_compared_with_the_plain_baseline_on_the_same_items(project: pd.DataFrame) -> None:
    claim = criteria.read_claims()["volume.grows"].criterion
    read = cases.read_cases("volume.grows", claim)
    beyond, _ = cases.measure(read, cases.beyond_baseline(claim))
    first, plain = (cases.measure(read, side)[0] for side in (criteria.Comparison(first=claim.first), claim.baseline))
    assert beyond.value == pytest.approx(first.value - plain.value)
    side, other, third = (criteria.Side(outcome=name) for name in ("drop", "loss", "random"))
    taken = claim.model_copy(
        update={"first": side, "minus": other, "baseline": criteria.Comparison(first=side, minus=third)}
    )
    assert cases.beyond_baseline(taken) == criteria.Comparison(first=third, minus=other), "what is left: less is better"
    apart = claim.model_copy(update={"first": side, "minus": other, "baseline": criteria.Comparison(first=third)})
    assert cases.beyond_baseline(apart) is None
    both = claim.model_copy(
        update={"first": side, "minus": other, "baseline": criteria.Comparison(first=third, minus=side)}
    )
    assert cases.beyond_baseline(both) is None, "they differ in both sides"


def test_markers_become_criteria_and_verdicts(judged: None) -> None:
    text = (
        "# Growth\n\n<!-- criteria: volume.helps,volume.grows -->\n\n## End\n\n<!-- verdicts: volume.grows -->\nLast."
    )
    shown, table = re.split(r"\n:::\n\n## End\n\n", claims.fill_markers(text))
    box = ":::{dropdown} How they are judged\n"
    assert shown.startswith(f"# Growth\n\n{box}- *Leaving out helps.* Share copied; reproduced if")
    grows = "\n- *Training images grow more | much more.* AUROC | of growth; reproduced if its whole 95 % interval is above 0.5"
    assert grows in shown
    header, rule, row, last = table.splitlines()
    assert header == f"| {' | '.join(claims.HEADER)} |"
    assert rule.count("---") == len(claims.HEADER)
    assert row.startswith("| Training images grow more \\| much more. | reproduced | AUROC 0.")
    assert last == "Last."
    assert claims.fill_markers("x <!-- a comment --> y") == "x <!-- a comment --> y"


def test_a_page_answers_with_its_claims(judged: None) -> None:
    first, _, _, grows, helps, last = claims.answers("chapters/growth.ipynb").splitlines()
    assert first.startswith(":::{admonition}")
    assert last == ":::"
    rows = {row["id"]: row for row in read_json(claims.FOUND)}
    row = rows["volume.grows"]
    found, baseline, beyond = (
        Estimate(row[f"{part}value"], *row[f"{part}ci95"]) for part in ("", "baseline_", "beyond_baseline_")
    )
    n = f"{row['items']['positive']} + {row['items']['negative']}"
    assert grows.startswith(
        f"- **Training images grow more | much more.** Reproduced: AUROC {found}, asked above 0.5; n = {n}. "
        f"The plain baseline, the loss: {baseline}; paired difference {beyond:+}, "
    )
    endings = ("so the method beats it.", "so the method is worse.", "whose interval contains 0.")
    assert grows.endswith(endings[0 if beyond.low > 0 else 1 if beyond.high < 0 else 2])
    assert helps.startswith("- **Leaving out helps.** ")
    assert claims.answers("chapters/other.ipynb") == ""
    assert "\n- Said.\n- **Training images" in claims.answers("chapters/growth.ipynb", ["- Said."])


def test_a_box_of_many_items_counts_the_claims_and_leaves_them_to_a_fold_below(judged: None) -> None:
    few = claims.answers("chapters/growth.ipynb", ["- One.\n- Two."])
    assert few.count("\n- ") == claims.ITEMS
    many = claims.answers("chapters/growth.ipynb", ["- One.\n- Two.\n- Three."])
    box, below = many.split("\n:::\n\n:::{dropdown} ")
    assert box.count("\n- ") == claims.ITEMS
    rows = {row["id"]: row for row in read_json(claims.FOUND)}
    verdicts = [rows[name]["holm_verdict"] for name in ("volume.grows", "volume.helps")]
    counted = dict.fromkeys(f"{each} ({verdicts.count(each)})" for each in verdicts)
    counts = f"2 on this page, after correction for their number: {', '.join(counted)}."
    assert box.endswith(f"\n- **Claims**, {counts}")
    assert below.splitlines()[1:-1] == few.splitlines()[-3:-1], "nothing is lost"
    assert below.endswith("\n:::")
    assert "dropdown" not in claims.answers("chapters/other.ipynb", ["- Said."] * 5)


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("criterion: volume.grows", "a marker says 'criterion'; did you mean 'criteria'"),
        ("criteria: volume.grow", "names the claim 'volume.grow', which book/claims.yml does not have; did you mean"),
        ("verdicts: volume.grow", "names the claim 'volume.grow', which book/claims.yml does not have; did you mean"),
        ("criteria:", "names the claim '', which"),
    ],
)
def test_a_marker_that_stands_for_nothing_is_refused(project: pd.DataFrame, marker: str, message: str) -> None:
    write_json(claims.FOUND, [])
    with pytest.raises(ValueError, match=message):
        claims.fill_markers(f"<!-- {marker} -->")


def test_a_share_of_items_is_wilsons_or_the_bootstraps() -> None:
    outcomes = np.arange(30) < 12
    assert measures.share(outcomes, 4).interval() == pytest.approx(mean_share(outcomes, 4), abs=0.02)
    assert measures.share(outcomes).interval().low <= proportion(12, 30).low


def test_every_claim_of_the_study_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    registry = criteria.read_claims()
    keys = {line.split("{")[1].rstrip(",\n") for line in (ROOT / "book/references.bib").open() if line.startswith("@")}
    assert {claim.paper for claim in registry.values() if claim.paper} <= keys
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["claims"]
    for name, claim in registry.items():
        asked = claim.criterion
        assert (ROOT / "notebooks" / Path(claim.page).name).exists()
        tables = [
            asked.items,
            *(join.table for join in asked.join),
            *(side.table for side in asked.sides() if side.table),
        ]
        assert all(any(table.startswith(f"{dep}/") for dep in stage["deps"]) for table in tables)
        shown = claims.MARKER.findall((ROOT / "notebooks" / Path(claim.page).name).read_text())
        for kind in ("criteria", "verdicts"):
            assert name in ", ".join(names for own, names in shown if own == kind).split(", "), kind


@cache
def read_study(name: str) -> cases.Cases:
    return cases.read_cases(name, criteria.read_claims()[name].criterion)


@pytest.mark.ci
@pytest.mark.parametrize("seed", range(20))
def test_no_verdict_of_the_study_hangs_on_the_seed_of_the_bootstrap(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    expected = {row["id"]: row for row in read_json(claims.FOUND) if row["verdict"] != "open"}
    found = {}
    for name in expected:
        read = read_study(name)
        seeded = replace(read, criterion=read.criterion.model_copy(update={"seed": seed}))
        found[name] = verdicts.settle(cases.measure(seeded)[0], read.criterion.above)
    registry = criteria.read_claims()
    for of_papers in (True, False):
        family = {name: row for name, row in found.items() if (registry[name].paper is not None) == of_papers}
        corrected = claims.holm([row["p_value"] for row in family.values()])
        for (name, row), p in zip(family.items(), corrected, strict=True):
            assert row["verdict"] == expected[name]["verdict"], name
            assert verdicts.after_correction(row["verdict"], p) == expected[name]["holm_verdict"], name


def test_what_is_tried_is_the_training_that_mitigates_or_else_the_first_side(project: pd.DataFrame) -> None:
    """A detector less its control, of the same trainings, could have told all: only what it finds is open."""

    def against_a_control(section: dict[str, Any]) -> None:
        section["helps"]["criterion"] |= {"minus": {"outcome": "copies > 99"}}

    for change, tried in ((lambda section: None, "second"), (against_a_control, "first")):
        write_registry(change)
        read = cases.read_cases("helps", criteria.read_claims()["volume.helps"].criterion)
        assert cases.measure(read)[0].tried == tried


def test_claims_of_this_study_are_a_family_of_their_own(project: pd.DataFrame) -> None:
    def add(section: dict[str, Any]) -> None:
        own = {key: value for key, value in section["grows"].items() if key != "paper"}
        section["ours"] = own | {"claim": "Ours tells.", "criterion": section["grows"]["criterion"]}
        section["open"] = own | {
            "criterion": section["grows"]["criterion"] | {"at_least": {"positive": 99, "negative": 9}}
        }

    write_registry(add)
    claims.judge_all()
    grows, helps, ours, undecided = read_json(claims.FOUND)
    corrected = multipletests([grows["p_value"], helps["p_value"]], method="holm")[1]
    assert [grows["holm_p_value"], helps["holm_p_value"]] == pytest.approx(corrected, rel=0.01)
    assert ours["holm_p_value"] == ours["p_value"] == grows["p_value"], "one claim, nothing to correct for"
    assert undecided["verdict"] == "open"
    page, plain = Path("book/generated/claims.md").read_text(), claims.findings([grows, helps, ours])
    for text in (page, plain):
        first, second = text.partition("**Claims of the papers**")[2].split("**Claims of this study**")
        assert text.count("| Claim | Verdict |") == 2
        assert "[**reproduced**]" in first
        assert "Ours tells. |" in second
        assert "[**holds**]" in second
        assert "[**reproduced**]" not in second
    assert page.count("{cite}`hasegawa2025`") == 2
    assert "| Training images grow more \\| much more. |" in plain
    assert "| Leaving out helps. (*variant, asked here*) |" in plain
    assert "holds if its whole 95 % interval is above 0.5, does not if" in page
    missed = ours | {"verdict": "not reproduced", "holm_verdict": "inconclusive"}
    assert "[**inconclusive (uncorrected: does not hold)**]" in claims.findings([missed])


def test_a_verdict_that_the_correction_takes_back_says_so(judged: None) -> None:
    grows, helps = read_json(claims.FOUND)
    taken = grows | {"holm_p_value": 0.0712, "holm_verdict": "inconclusive", "detectable": None}
    page = claims.first_page([taken | {"control_value": 0.5, "control_ci95": [0.4, 0.6]}, helps])
    assert "[**inconclusive (uncorrected: reproduced)**](chapters/growth.ipynb)" in page
    assert ", corrected = 0.071; plain" in page
    assert "; control 0.500 [0.400, 0.600]; detectable nothing.</details>" in page


def test_a_control_is_the_same_contrast_with_scores_of_other_trainings(project: pd.DataFrame) -> None:
    whole = {"table": "tables/scores/{training}-growth.parquet", "average": "aurocs"}
    changed = {"first": whole, "trainings": ["main", "again"], "control": whole | {"trainings": ["again", "main"]}}
    shift = project.assign(where=np.where(project.index % 2, "main", "again"))
    write_table("tables/items.parquet", shift)
    changed |= {"positive": 'copies > 0 and where == "{training}"', "baseline": {"first": whole}}
    write_registry(update("grows", **changed))
    claims.judge_all()
    row = read_json(claims.FOUND)[0]
    by_hand = []
    for training, other in (("main", "again"), ("again", "main")):
        scores = read_scores(f"tables/scores/{other}-growth.parquet")
        groups = shift.query(f'copies > 0 and where == "{training}"')["id"], shift.query("copies == 0")["id"]
        by_hand += [roc.auroc_value(scores.loc[groups[0], s], scores.loc[groups[1], s]) for s in scores]
    assert row["control_value"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert row["control_value"] != row["value"]


SCORES = {
    "main-growth": {"tables": {"growth": {"settings": [{"each": {"sigma": [0.5, 1]}, "draws": [1, 2]}]}}},
    "main-loss": {"tables": {"loss": {"settings": [{}]}}},
}


@pytest.mark.parametrize(
    ("table", "setting", "message"),
    [
        ("tables/scores/{training}-growth/growth.parquet", {"sigma": 1, "draws": 2, "rate_at": None}, None),
        ("tables/scores/{training}-growth/growth.parquet", {"sigma": [1, 3], "draws": [2, 3]}, None),
        ("tables/scores/{training}-growth/growth.parquet", {"sigma": 3}, "{'sigma': 3}, which no setting of tables/sc"),
        ("tables/scores/{training}-growth/loss.parquet", {}, "main-growth/loss.parquet, which no entry of `scores` in"),
        ("tables/scores/{training}-flux/growth.parquet", {}, "main-flux/growth.parquet, which no entry of `scores`"),
    ],
)
def test_scores_that_no_stage_writes_are_refused_before_a_run(
    project: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, table: str, setting: dict[str, Any], message: str | None
) -> None:
    write_json("params.yaml", {"scores": SCORES})
    loss = {"first": {"table": "tables/scores/{training}-loss/loss.parquet"}}
    write_registry(update("grows", first={"table": table, "setting": setting}, baseline=loss))
    criteria.check_before_run()
    monkeypatch.setattr(criteria, "is_the_study", lambda: True)
    if message is None:
        criteria.check_before_run()
    else:
        with pytest.raises(ValueError, match=f"the claim 'volume.grows' .*{message}"):
            criteria.check_before_run()


def test_a_run_is_refused_where_a_claim_could_not_be_settled(project: pd.DataFrame) -> None:
    write_registry(lambda volume: volume["grows"].pop("criterion"))
    with pytest.raises(ValueError, match="the claim 'volume.grows' has no criterion"):
        criteria.check_before_run()
    write_registry()
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    Path("params.yaml").write_text(yaml.safe_dump({"scores": {}}))
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(ValueError, match="would be newer than its result"):
        criteria.check_before_run()
    for command in (["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(ValueError, match="which no entry of `scores` in params.yaml writes"):
        criteria.check_before_run()


def test_the_scores_of_every_claim_of_the_study_are_written_by_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(criteria, "is_the_study", lambda: True)
    monkeypatch.setattr(criteria, "committed_criteria", lambda: {})
    criteria.check_before_run()


def test_a_share_is_over_the_items_of_all_trainings(project: pd.DataFrame) -> None:
    among = 'role == "{training}"'
    one = {"first": {"outcome": "copied > 0"}}
    write_registry(update("helps", among=among, trainings=["random-0", "random-1"], minus=None, baseline=one))
    read = cases.read_cases("volume.helps", criteria.read_claims()["volume.helps"].criterion)
    found, _ = cases.measure(read)
    outcomes = [
        pd.read_parquet(f"tables/samples/{training}.parquet").query("guidance == 3").set_index("id")["copied"][ids]
        for training, ids in (("random-0", project["id"][:20]), ("random-1", project["id"][20:40]))
    ]
    assert read.counts == {"items": 40}
    assert found.value == pytest.approx(np.mean([*outcomes[0], *outcomes[1]]))
    assert found.by_training == pytest.approx([own.mean() for own in outcomes])
    assert len(found.deviations) == 40
