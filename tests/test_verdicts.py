"""A second pair of eyes: every verdict of the study recomputed from the committed tables with scipy and statsmodels.

Nothing of the package's statistics, and nothing that reads tables for it, is used here: only book/claims.yml, the tables, and
metrics/claims.json. The intervals are the wider of a score interval and the bootstrap, differences are by square-and-add.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from memlib.evaluation import measured
from memlib.study import cases, criteria

ROOT = Path(__file__).parent.parent
CLAIMS = {
    f"{section}.{name}": entry["criterion"]
    for section, entries in yaml.safe_load((ROOT / "book/claims.yml").read_text()).items()
    for name, entry in entries.items()
}
FOUND = {row["id"]: row for row in json.loads((ROOT / "metrics/claims.json").read_text())}
SETTLED = [name for name, row in FOUND.items() if row["verdict"] != "open"]
Part = tuple[float, float, float, np.ndarray, np.ndarray]  # value, low, high, deviations by item, values by training


@cache
def table(path: str) -> pd.DataFrame:
    return pd.read_parquet(ROOT / path)


def items(asked: dict[str, Any], training: str) -> pd.DataFrame:
    found = table(asked["items"].format(training=training)).set_index("id")
    for join in asked.get("join", []):
        other = table(join["table"].format(training=training)).query(join.get("where", "index == index"))
        if join.get("read") == "copies":
            copies = other.loc[other["distance"] / other["second_distance"] < 1 / 3, "nearest"]
            found["reproduced"] = found.index.isin(copies)
            continue
        if join.get("read") == "triggers":
            other = other.assign(trigger=other["id"].map(found["trigger"]).fillna("")).query("trigger != ''")
            top = other.loc[other.groupby(["way", "id"])["significance"].idxmax()]
            other = top.assign(hit=top["token"] == top["trigger"]).pivot(index="id", columns="way", values="hit")
        else:
            other = other.groupby("id").mean(numeric_only=True)
        found = found.join(other[[name for name in other if name not in found]], how="inner")
    return found.query(asked["among"]) if asked.get("among") else found


def halves(asked: dict[str, Any], training: str) -> set[str]:
    """Items on which settings are chosen: every other one of each group, in a random order."""
    if not asked.get("split"):
        return set()
    whole = items(asked, training)
    shuffled = whole.assign(order=np.random.default_rng(asked["split"]["seed"]).random(len(whole)))
    return set(shuffled.sort_values([*asked["split"]["by"], "order"]).index[::2])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    return stats.mannwhitneyu(positive, negative).statistic / len(positive) / len(negative)


def newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's limits (2006, method 5), as the range of values that the score test does not reject."""

    def rejected(theta: float) -> float:
        q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)  # Hanley & McNeil
        star = (m + n) / 2 - 1
        variance = (theta * (1 - theta) + star * (q1 - theta**2 + q2 - theta**2)) / (m * n)
        return abs(value - theta) - stats.norm.ppf(0.975) * np.sqrt(variance)

    inside = max(min(value, 1 - 1e-9), 1e-9)
    low = optimize.brentq(rejected, 1e-12, inside) if rejected(1e-12) > 0 else 0.0
    high = optimize.brentq(rejected, inside, 1 - 1e-12) if rejected(1 - 1e-12) > 0 else 1.0
    return low, high


def scores_of(asked: dict[str, Any], side: dict[str, Any], training: str, ids: list[str]) -> pd.DataFrame:
    long = table(side["table"].format(training=training))

    def parsed(setting: str) -> dict[str, Any]:
        return {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in setting.split())}

    def fits(setting: str) -> bool:
        asked_for = side.get("setting", {}).items()
        return all(parsed(setting).get(key) in (want if isinstance(want, list) else [want]) for key, want in asked_for)

    settings = [setting for setting in long["setting"].unique() if fits(setting)]
    wide = long[long["setting"].isin(settings)].pivot(index="item", columns="setting", values="score").loc[ids]
    return wide / [parsed(name)["sigma"] for name in wide] if side.get("per_sigma") else wide


def auroc_part(asked: dict[str, Any], side: dict[str, Any]) -> Part:
    chosen_on, values, deviations, replicas = halves(asked, asked["trainings"][0]), [], {}, []
    groups, tables = {}, {}
    for training in asked["trainings"]:
        whole = items(asked, training)
        own = [list(whole.query(asked[kind].format(training=training)).index) for kind in ("positive", "negative")]
        scores = scores_of(asked, side, training, own[0] + own[1])
        tables[training] = scores.mean(axis=1).to_frame() if side.get("average") == "scores" else scores
        groups[training] = own
    settings = list(tables[asked["trainings"][0]])
    if side.get("average") != "aurocs" and len(settings) > 1:
        reached = [
            np.mean(
                [auroc(*(t.loc[[i for i in g if i in chosen_on], s] for g in groups[k])) for k, t in tables.items()]
            )
            for s in settings
        ]
        settings = [settings[int(np.argmax(reached))]]
    held = [set(), set()]
    for training, scores in tables.items():
        sides = [[i for i in g if i not in chosen_on] for g in groups[training]]
        wins = np.zeros([len(own) for own in sides])
        for setting in settings:
            p, n = (scores.loc[own, setting].to_numpy() for own in sides)
            wins += (np.sign(p[:, None] - n) + 1) / 2 / len(settings)
        values.append(wins.mean())
        for axis, own in enumerate(sides):
            held[axis] |= set(own)
            components = wins.mean(1 - axis) - wins.mean()
            for item, component in zip(own, components / len(own) / len(tables), strict=True):
                deviations[axis, item] = deviations.get((axis, item), 0.0) + component
        replicas.append((wins, sides))
    m, n = (len(each) for each in held)
    names = sorted(held[0] | held[1])
    by_item = np.array(
        [
            deviations.get((0, i), 0.0) * np.sqrt(m / (m - 1)) + deviations.get((1, i), 0.0) * np.sqrt(n / (n - 1))
            for i in names
        ]
    )
    value, limits = float(np.mean(values)), newcombe(float(np.mean(values)), m, n)
    drawn = np.quantile([resample(replicas, held, rng) for rng in np.random.default_rng(99).spawn(800)], [0.025, 0.975])
    return value, min(limits[0], drawn[0]), max(limits[1], drawn[1]), by_item, np.array(values)


def resample(replicas: list[tuple[np.ndarray, list]], held: list[set[str]], rng: np.random.Generator) -> float:
    """The mean AUROC over trainings where items are drawn again, those of one side or of both each on their own."""
    times: dict[str, int] = {}
    for stratum in (held[0] - held[1], held[1] - held[0], held[0] & held[1]):
        names = sorted(stratum)
        counts = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) if names else []
        times |= dict(zip(names, counts, strict=True))
    found = []
    for wins, sides in replicas:
        p, n = (np.array([times[item] for item in own]) for own in sides)
        found.append(p @ wins @ n / p.sum() / n.sum())
    return float(np.mean(found))


def share_part(asked: dict[str, Any], side: dict[str, Any]) -> Part:
    outcomes = pd.DataFrame(
        {
            training: items(asked, training).eval(side["outcome"].format(training=training)).astype(float)
            for training in side.get("trainings", asked["trainings"])
        }
    )
    own, n = outcomes.mean(axis=1).to_numpy(), len(outcomes)
    wilson = proportion_confint(round(own.sum()), n, method="wilson")
    drawn = stats.bootstrap((own,), np.mean, n_resamples=2000, method="percentile", random_state=9, vectorized=True)
    low, high = drawn.confidence_interval if np.ptp(own) else wilson
    return own.mean(), min(low, wilson[0]), max(high, wilson[1]), own - own.mean(), outcomes.mean().to_numpy()


def curve_part(asked: dict[str, Any]) -> tuple[float, float, float]:
    """Mean gap of two curves of agreement over similarity, with the wider of the bootstrap's and Student's interval."""
    means = table(asked["items"]).groupby(["method", "strength", "id"])[["similarity", "agreement"]].mean()
    arms = [
        pd.concat([means.loc["unchanged"], means.loc[asked[side]["method"]]]).unstack().swaplevel(axis=1)
        for side in ("first", "minus")
    ]
    count = arms[0].shape[1] // 2

    def gap(rows: np.ndarray) -> float:
        points = []
        for arm in arms:
            x, y = (arm.xs(name, axis=1, level=1).to_numpy()[:, rows].mean(1) for name in ("similarity", "agreement"))
            points.append((np.sort(x), y[np.argsort(x)]))
        x = np.linspace(max(p[0][0] for p in points), min(p[0][-1] for p in points), 201)
        return np.trapezoid(np.interp(x, *points[0]) - np.interp(x, *points[1]), x) / (x[-1] - x[0])

    rng, value = np.random.default_rng(5), gap(np.arange(count))
    drawn = [gap(rng.integers(0, count, count)) for _ in range(800)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    student = stats.t.interval(0.95, count - 1, value, np.std(drawn))
    return value, min(low, student[0]), max(high, student[1])


def recomputed(asked: dict[str, Any]) -> tuple[float, float, float]:
    """Value and 95 % interval of a criterion."""
    if asked["statistic"] == "agreement":
        return curve_part(asked)
    part = auroc_part if asked["statistic"] == "AUROC" else share_part
    value, low, high, a, by_training = part(asked, asked["first"])
    other = asked.get("minus")
    if other:
        second, low_b, high_b, b, by_other = part(asked, other)
        rho = (a @ b) / np.sqrt((a @ a) * (b @ b)) if (a @ a) * (b @ b) > 0 else 0.0
        down, up, down_b, up_b = value - low, high - value, second - low_b, high_b - second
        value = value - second
        low = value - np.sqrt(down**2 - 2 * rho * down * up_b + up_b**2)
        high = value + np.sqrt(up**2 - 2 * rho * up * down_b + down_b**2)
        same = other.get("trainings", asked["trainings"]) == asked["first"].get("trainings", asked["trainings"])
    if len(by_training) > 1:
        if other and not same:
            interval = stats.ttest_ind(by_training, by_other, equal_var=False).confidence_interval()
        else:
            interval = stats.ttest_1samp(by_training - (by_other if other else 0), 0).confidence_interval()
        half = (interval.high - interval.low) / 2
        low, high = value - np.hypot(value - low, half), value + np.hypot(high - value, half)
    return value, low, high


@pytest.mark.parametrize("name", SETTLED)
def test_every_verdict_is_found_again(name: str) -> None:
    row, asked = FOUND[name], CLAIMS[name]
    value, low, high = recomputed(asked)
    assert row["value"] == pytest.approx(value, abs=1e-3)
    assert row["ci95"] == pytest.approx([low, high], abs=0.012), "two bootstraps differ by less"
    verdict = "reproduced" if low > asked["above"] else "not reproduced" if high < asked["above"] else None
    assert row["verdict"] == verdict if verdict else row["verdict"] in ("inconclusive", "underpowered")


def test_holms_correction_is_that_of_statsmodels() -> None:
    p_values = [FOUND[name]["p_value"] for name in SETTLED]
    rejected, corrected, *_ = multipletests(p_values, alpha=0.05, method="holm")
    for name, keeps, p in zip(SETTLED, rejected, corrected, strict=True):
        row = FOUND[name]
        assert row["holm_p_value"] == pytest.approx(p, rel=0.01)
        assert (row["holm_verdict"] in ("reproduced", "not reproduced")) == keeps
        assert (row["verdict"] in ("reproduced", "not reproduced")) == (row["p_value"] < 0.05)


def test_every_settled_claim_has_the_items_that_it_asks_for() -> None:
    for name in SETTLED:
        for kind, least in CLAIMS[name]["at_least"].items():
            assert FOUND[name]["items"][kind] >= least, name


@pytest.mark.parametrize("name", SETTLED)
def test_no_verdict_hangs_on_the_seed_of_the_bootstrap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    criterion = criteria.read_claims()[name].criterion
    monkeypatch.setattr(cases, "read_scores", cache(cases.read_scores))
    read = cases.read_cases(name, criterion)
    threshold = criterion.above
    sides = []
    for seed in range(20):
        seeded = cases.Cases(
            name, criterion.model_copy(update={"seed": seed}), read.items, read.positive, read.choosing
        )
        estimate = cases.measure(seeded)[0].interval(measured.LEVEL)
        sides.append((estimate.low > threshold, estimate.high < threshold))
    expected = FOUND[name]["verdict"]
    assert set(sides) == {(expected == "reproduced", expected == "not reproduced")}
