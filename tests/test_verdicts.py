"""A second pair of eyes: every verdict recomputed from tables with scipy and statsmodels.

Nothing of the package is used to recompute: only book/claims.yml, the tables, and metrics/claims.json. The intervals are the
wider of a score interval and the bootstrap; those of differences on the same items the wider of square-and-add and Student's.
It is done twice: for the committed tables, and for a made-up study, whose tables hold what book/claims.yml asks for. There all
claims are judged by the package, so that the two agree whatever the study finds, and before it has run.
"""

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from memlib.study import claims

ROOT = Path(__file__).parent.parent
ENTRIES = {
    f"{section}.{name}": entry
    for section, entries in yaml.safe_load((ROOT / "book/claims.yml").read_text()).items()
    for name, entry in entries.items()
}
CLAIMS = {name: entry["criterion"] for name, entry in ENTRIES.items()}
FOUND = {row["id"]: row for row in json.loads((ROOT / "metrics/claims.json").read_text())}
SETTLED = [name for name, row in FOUND.items() if row["verdict"] != "open"]
RESAMPLES = 4000


class Part(NamedTuple):
    """One side: value, interval, its deviation by item (their squares add up to its variance), values by training, power."""

    value: float
    low: float
    high: float
    deviations: np.ndarray
    by_training: np.ndarray
    freedom: int
    best: tuple[float, float]  # limits, had the value been the best: the largest, or the smallest of what copies
    limits: tuple[float, float]  # those of the score interval alone


@cache
def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def table(path: str) -> pd.DataFrame:
    return read(Path.cwd() / path)


def items(asked: dict[str, Any], training: str) -> pd.DataFrame:
    """The items of one training by id, with what is joined to them."""
    return joined(Path.cwd(), json.dumps([asked["items"], asked.get("join", []), asked.get("among")]), training)


def filled(text: str, training: str) -> str:
    return text.format(training=training, role=training.split("-")[0])


@cache
def joined(folder: Path, about: str, training: str) -> pd.DataFrame:
    asked = dict(zip(("items", "join", "among"), json.loads(about), strict=True))
    found = table(filled(asked["items"], training)).set_index("id")
    for join in asked["join"]:
        other = table(filled(join["table"], training)).query(join.get("where", "index == index"))
        if join.get("read") == "triggers":
            other = other.assign(trigger=other["id"].map(found["trigger"]).fillna("")).query("trigger != ''")
            top = other.loc[other.groupby(["way", "id"])["significance"].idxmax()]
            other = top.assign(hit=top["token"] == top["trigger"]).pivot(index="id", columns="way", values="hit")
        elif join.get("read") == "named":
            other = named(other)
        else:
            other = other.groupby("id").mean(numeric_only=True)
        found = found.join(other[[name for name in other if name not in found]], how="inner")
    return found.query(asked["among"]) if asked["among"] else found


def named(scores: pd.DataFrame, rate: float = 0.1) -> pd.DataFrame:
    """The first step after the first look at which each trained item is named, by each detector's change and by its score."""
    found = {}
    for name, own in scores.groupby("detector"):
        wide = own.pivot(index="step", columns="item", values="score").sort_index()
        inside = own.groupby("item")["trained"].first()[wide.columns].to_numpy()
        for label, values in ((f"{name}_named_at", wide - wide.iloc[0]), (f"{name}_itself_named_at", wide)):
            first = pd.Series(np.nan, wide.columns[inside])
            for step, row in values.iloc[1:].iterrows():
                nulls = np.sort(row[~inside])
                above = len(nulls) - np.searchsorted(nulls, row[inside])
                adjusted = stats.false_discovery_control((1 + above) / (1 + len(nulls)))
                first[first.isna().to_numpy() & (adjusted <= rate)] = step
            found[label] = first
    return pd.DataFrame(found)


def halves(asked: dict[str, Any], training: str) -> set[str]:
    """Items on which settings are chosen: every other one of each group, in a random order."""
    if not asked.get("split"):
        return set()
    whole = items(asked, training)
    shuffled = whole.assign(order=np.random.default_rng(asked["split"]["seed"]).random(len(whole)))
    return set(shuffled.sort_values([*asked["split"]["by"], "order"]).index[::2])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    return stats.mannwhitneyu(positive, negative).statistic / len(positive) / len(negative)


def newcombe(value: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Newcombe's limits (2006, method 5), as the range of values that the score test does not reject."""

    def rejected(theta: float) -> float:
        q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)  # Hanley & McNeil
        star = (m + n) / 2 - 1
        variance = (theta * (1 - theta) + star * (q1 - theta**2 + q2 - theta**2)) / (m * n)
        return abs(value - theta) - stats.norm.ppf((1 + level) / 2) * np.sqrt(variance)

    inside = max(min(value, 1 - 1e-9), 1e-9)
    low = optimize.brentq(rejected, 1e-12, inside) if rejected(1e-12) > 0 else 0.0
    high = optimize.brentq(rejected, inside, 1 - 1e-12) if rejected(1 - 1e-12) > 0 else 1.0
    return low, high


@cache
def parsed(setting: str) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in setting.split())}


def scores_of(side: dict[str, Any], training: str, ids: list[str]) -> pd.DataFrame:
    long = table(filled(side["table"], training))

    def fits(setting: str) -> bool:
        asked_for = side.get("setting", {}).items()
        return all(parsed(setting).get(key) in (want if isinstance(want, list) else [want]) for key, want in asked_for)

    settings = [setting for setting in long["setting"].unique() if fits(setting)]
    wide = long[long["setting"].isin(settings)].pivot(index="item", columns="setting", values="score").loc[ids]
    return wide / [parsed(name)["sigma"] for name in wide] if side.get("per_sigma") else wide


def auroc_part(asked: dict[str, Any], side: dict[str, Any], level: float) -> Part:
    values, by_item, (m, n), drawn = aurocs(Path.cwd(), json.dumps([asked, side]))
    value = float(np.mean(values))
    limits, best = (newcombe(at, m, n, level) for at in (value, 1.0))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Part(value, min(limits[0], low), max(limits[1], high), by_item, values, min(m, n) - 1, best, limits)


@cache
def aurocs(folder: Path, about: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """By training, deviations by item, items of each side, and by resample: of a side of a criterion in a folder."""
    asked, side = json.loads(about)
    chosen_on, values, deviations, replicas = halves(asked, asked["trainings"][0]), [], {}, []
    groups, tables = {}, {}
    for training in asked["trainings"]:
        whole = items(asked, training)
        own = [list(whole.query(filled(asked[kind], training)).index) for kind in ("positive", "negative")]
        other = dict(zip(asked["trainings"], side.get("trainings", asked["trainings"]), strict=True))[training]
        scores = scores_of(side, other, own[0] + own[1])
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
    return np.array(values), by_item, (m, n), resampled(replicas, held)


def resampled(replicas: list[tuple[np.ndarray, list]], held: list[set[str]]) -> np.ndarray:
    """The mean AUROC over trainings where items are drawn again, those of one side or of both each on their own."""
    rng, times = np.random.default_rng(99), {}
    for stratum in (held[0] - held[1], held[1] - held[0], held[0] & held[1]):
        if stratum:
            drawn = rng.multinomial(len(stratum), [1 / len(stratum)] * len(stratum), RESAMPLES)
            times |= dict(zip(sorted(stratum), drawn.T, strict=True))
    found = np.zeros(RESAMPLES)
    for wins, sides in replicas:
        p, n = (np.array([times[item] for item in own]) for own in sides)
        with np.errstate(invalid="ignore"):  # nan without positives
            found += np.einsum("pr,pn,nr->r", p, wins, n, optimize=True) / p.sum(0) / n.sum(0) / len(replicas)
    return found


def share_part(asked: dict[str, Any], side: dict[str, Any], level: float) -> Part:
    own, by_training, drawn = shares(Path.cwd(), json.dumps([asked, side]))
    n = len(own)
    wilson, best = (
        proportion_confint(k, n, 1 - level, method="wilson")
        for k in (round(own.sum()), 0 if mitigates(asked) and side == asked["minus"] else n)
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    deviations = (own - own.mean()) / np.sqrt(n * (n - 1))
    low, high = min(low, wilson[0]), max(high, wilson[1])
    return Part(own.mean(), low, high, deviations, by_training, n - 1, best, wilson)


@cache
def shares(folder: Path, about: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By item, by training and by resample: of a side of a criterion in a folder."""
    asked, side = json.loads(about)
    outcomes = pd.DataFrame(
        {
            training: items(asked, training).eval(filled(side["outcome"], training)).astype(float)
            for training in side.get("trainings", asked["trainings"])
        }
    )
    own, n = outcomes.mean(axis=1).to_numpy(), len(outcomes)
    drawn = own[np.random.default_rng(9).integers(0, n, (RESAMPLES, n))].mean(1)
    return own, outcomes.mean().to_numpy(), drawn


def curve_part(asked: dict[str, Any], level: float) -> Part:
    """Mean gap of two curves of agreement over similarity, with the wider of the bootstrap's and Student's interval."""
    value, drawn, count = gaps(Path.cwd(), json.dumps(asked))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    student, best = (stats.t.interval(level, count - 1, at, np.nanstd(drawn)) for at in (value, 1.0))
    low, high = min(low, student[0]), max(high, student[1])
    return Part(value, low, high, np.zeros(1), np.array([value]), count - 1, best, student)


@cache
def gaps(folder: Path, about: str) -> tuple[float, list[float], int]:
    """The gap of the curves, the same by resample, and the number of prompts: of a criterion in a folder."""
    asked = json.loads(about)
    means = table(asked["items"]).groupby(["method", "strength", "id"])[["similarity", "agreement"]].mean()
    arms = [
        pd.concat([means.loc["unchanged"], means.loc[asked[side]["method"]]]).unstack().swaplevel(axis=1)
        for side in ("first", "minus")
    ]
    count = arms[0].shape[1] // 2
    curves = [[arm.xs(name, axis=1, level=1).to_numpy() for name in ("similarity", "agreement")] for arm in arms]
    grid = np.linspace(0, 1, 201)

    def gap(means: list[np.ndarray]) -> float:
        first, second = ((x[order], y[order]) for x, y in (means[:2], means[2:]) for order in [x.argsort()])
        low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
        x = low + grid * (high - low)
        return np.trapezoid(np.interp(x, *first) - np.interp(x, *second), grid) if low < high else np.nan

    times = np.random.default_rng(5).multinomial(count, [1 / count] * count, RESAMPLES) / count
    parts = [part @ np.vstack([np.full(count, 1 / count), times]).T for curve in curves for part in curve]
    value, *drawn = (gap(list(means)) for means in zip(*(part.T for part in parts), strict=True))
    return value, drawn, count


def recomputed(asked: dict[str, Any], level: float = 0.95) -> tuple[float, float, float, bool]:
    """Value and interval of a criterion, and whether the best outcome on as many items could have settled it."""
    if asked["statistic"] == "agreement":
        found = curve_part(asked, level)
        return found.value, found.low, found.high, found.best[0] > asked["above"]
    part = auroc_part if asked["statistic"] == "AUROC" else share_part
    a = part(asked, asked["first"], level)
    value, low, high, by_training, best = a.value, a.low, a.high, a.by_training, a.best[0]
    other, same = asked.get("minus"), True
    if other:
        b = part(asked, other, level)
        value, low, high = difference(a, b, a.deviations - b.deviations, level)
        best = best_difference(a, b, 0.0 if mitigates(asked) else 1.0, level)
        same = other.get("trainings", asked["trainings"]) == asked["first"].get("trainings", asked["trainings"])
        by_training = a.by_training - b.by_training if same else by_training
    if len(by_training) > 1:
        half = stats.t.ppf((1 + level) / 2, len(by_training) - 1) * stats.sem(by_training)
        if not same:
            welch = stats.ttest_ind(by_training, b.by_training, equal_var=False).confidence_interval(level)
            half = (welch.high - welch.low) / 2
        low, high = value - np.hypot(value - low, half), value + np.hypot(high - value, half)
    if not other:
        low, high = max(low, 0.0), min(high, 1.0)
    return value, low, high, best > asked["above"]


def mitigates(asked: dict[str, Any]) -> bool:
    """Whether the method is the training that is taken away from its control; else it is the first side."""
    return "trainings" in (asked.get("minus") or {})


def best_difference(a: Part, b: Part, best: float, level: float) -> float:
    """Lower limit, had the detector been the best or, where `best` is 0, the mitigation let nothing be copied."""

    def had_been(side: Part) -> tuple[Part, np.ndarray]:
        scale = (side.best[1] - side.best[0]) / (side.limits[1] - side.limits[0])
        return side._replace(value=best, low=side.best[0], high=side.best[1]), scale * side.deviations

    if best:
        first, deviations = had_been(a)
        return difference(first, b, deviations - b.deviations, level, rho=correlation(a, b))[1]
    second, deviations = had_been(b)
    return difference(a, second, a.deviations - deviations, level, rho=correlation(a, b))[1]


def correlation(a: Part, b: Part) -> float:
    if not (a.deviations.any() and b.deviations.any()):
        return 0.0
    return (a.deviations @ b.deviations) / np.linalg.norm(a.deviations) / np.linalg.norm(b.deviations)


def difference(
    a: Part, b: Part, deviations: np.ndarray, level: float, rho: float | None = None
) -> tuple[float, float, float]:
    """Of two values on the same items: the wider of square-and-add and Student's of the deviations item by item."""
    value, rho = a.value - b.value, correlation(a, b) if rho is None else rho
    down, up, down_b, up_b = a.value - a.low, a.high - a.value, b.value - b.low, b.high - b.value
    half = stats.t.ppf((1 + level) / 2, min(a.freedom, b.freedom)) * np.linalg.norm(deviations)
    below = np.sqrt(max(down**2 - 2 * rho * down * up_b + up_b**2, 0))
    above = np.sqrt(max(up**2 - 2 * rho * up * down_b + down_b**2, 0))
    return value, value - max(below, half), value + max(above, half)


def verdict(asked: dict[str, Any]) -> str:
    _, low, high, settleable = recomputed(asked)
    if low > asked["above"]:
        return "reproduced"
    if high < asked["above"]:
        return "not reproduced"
    return "inconclusive" if settleable else "underpowered"


def check(row: dict[str, Any], asked: dict[str, Any]) -> None:
    """That a row of metrics/claims.json is what the tables of this folder say."""
    value, low, high, _ = recomputed(asked)
    bootstraps = 0.006 if asked["statistic"] == "AUROC" else 0.012  # by which two of them differ at most
    if asked["statistic"] == "AUROC":  # whose resamples lie on a grid
        bootstraps += 2 / row["items"]["positive"] / row["items"]["negative"]
    assert row["value"] == pytest.approx(value, abs=1e-3)
    assert row["ci95"] == pytest.approx([low, high], abs=bootstraps)
    if min(abs(bound - asked["above"]) for bound in row["ci95"]) > bootstraps:
        assert row["verdict"] == verdict(asked)
    baseline = recomputed({**asked, "minus": None, **asked["baseline"]})
    assert [row["baseline_value"], *row["baseline_ci95"]] == pytest.approx(baseline[:3], abs=bootstraps)
    if asked.get("control"):
        control = recomputed({**asked, "minus": None, "first": asked["control"]})
        assert [row["control_value"], *row["control_ci95"]] == pytest.approx(control[:3], abs=bootstraps)
    if 0.01 < row["p_value"] < 0.7:  # about the level at which the interval reaches the threshold
        for p, holds in ((row["p_value"] / 1.4, True), (row["p_value"] * 1.4, False)):
            _, low, high, _ = recomputed(asked, 1 - p)
            assert (low <= asked["above"] <= high) == holds


@pytest.mark.parametrize("name", SETTLED)
def test_every_verdict_is_found_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(FOUND[name], CLAIMS[name])
    assert FOUND[name]["verdict"] == verdict(CLAIMS[name])


@pytest.mark.parametrize("family", [True, False], ids=["of papers", "of this study"])
def test_holms_correction_is_that_of_statsmodels(family: bool) -> None:
    """Among the claims of the papers, and among those of this study."""
    settled = [name for name in SETTLED if ("paper" in ENTRIES[name]) == family]
    if not settled:
        pytest.skip("no claim of this kind is settled yet")
    p_values = [FOUND[name]["p_value"] for name in settled]
    rejected, corrected, *_ = multipletests(p_values, alpha=0.05, method="holm")
    for name, keeps, p in zip(settled, rejected, corrected, strict=True):
        row = FOUND[name]
        assert row["holm_p_value"] == pytest.approx(p, rel=0.01)
        assert (row["holm_verdict"] in ("reproduced", "not reproduced")) == keeps
        assert (row["verdict"] in ("reproduced", "not reproduced")) == (row["p_value"] < 0.05)


def test_every_settled_claim_has_the_items_that_it_asks_for() -> None:
    for name in SETTLED:
        for kind, least in CLAIMS[name]["at_least"].items():
            assert FOUND[name]["items"][kind] >= least, name


WAYS = ("gradient, encoder output", "gradient, encoder input", "word left out")
METHODS = ("optimised embedding", "random tokens", "repeated words", "less guidance")


def prompts() -> pd.DataFrame:
    """Judged prompts: planted ones of both roles, those of the highest grade first, and others."""
    rows = [
        (f"{group}-{role}-{k}", group, role, 4 if k < 14 else 1, "zog" if group == "trigger" else "")
        for group, roles, count in (
            ("planted", ("planted", "exchanged"), 20),
            ("trigger", ("planted", "exchanged"), 8),
            ("ordinary", ("",), 120),
            ("unseen", ("",), 40),
        )
        for role, k in product(roles, range(count))
    ]
    return pd.DataFrame(rows, columns=["id", "group", "planted_in", "copies", "trigger"])


def settings_of(path: str) -> list[str]:
    """Names of the settings of a score table; the detectors write more of them."""
    sigmas = [f"prompt={c} sigma={s}" if "latent" in path else f"sigma={s}" for c in (True, False) for s in (0.1, 0.2)]
    sigmas = list(dict.fromkeys(sigmas))
    return {
        "growth": ["directions=2 sigma_min=0.02", "directions=2 rate_at=0.1 sigma_min=0.02"],
        "growth_from": ["directions=2 sigma_min=0.02", "directions=2 sigma_min=0.1", "rate_at=0.1 sigma_min=0.1"],
        "first_step": ["axes=1 steps=1 timesteps=1"],
        "edges": [f"axes={a} sigma_min={s} steps={n}" for a, s, n in product((1, 2), (0.1, 0.2), (1, 2))],
        "flux": [f"p={p} {s}" for p, s in product((1, 1.5, 2, 3), sigmas)],
        "loss": [f"draws={d} {s}" for d, s in product((1, 2, 4, 8) if "latent" not in path else (8,), sigmas)],
        "magnitude": [f"noise={k}" for k in range(4)],
        "sampled_magnitude": [f"noise={n} sigma={s} step={k}" for n in (0, 1) for k, s in enumerate((9, 0.3))],
        "between_generations": ["generations=4"],
        "prompt_length": [""],
    }[Path(path).stem]


def write(path: str, frame: pd.DataFrame) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)


def sides(asked: dict[str, Any]) -> list[dict[str, Any]]:
    baseline = asked["baseline"]
    every = (asked["first"], asked.get("minus"), baseline["first"], baseline.get("minus"), asked.get("control"))
    return [side for side in every if side]


def make_up(rng: np.random.Generator, effect: float) -> None:
    """Tables of a made-up study in this folder, as large as book/claims.yml asks for; effect: how much detectors tell."""
    whole = prompts()
    write("tables/drawings/prompts.parquet", whole)
    followed = whole[whole["group"].isin(["planted", "trigger"]) | (whole.groupby("group").cumcount() < 60)]
    write("tables/drawings/followed.parquet", followed)
    judged = pd.DataFrame({"id": [f"d{k}" for k in range(124)], "group": ["most copied"] * 14 + ["ordinary"] * 110})
    judged["split"], judged["copies"] = np.where(judged.index < 14, "planted", "train"), 4
    write("tables/drawings/judged.parquet", judged)
    given = [("unchanged", 0.0), *product(METHODS, (1.0, 2.0, 3.0))]
    moved = [(method, strength, str(k)) for (method, strength), k in product(given, range(18))]
    moved = pd.DataFrame(moved, columns=["method", "strength", "id"])
    lost = 0.1 * moved["strength"] * (1 - effect * (moved["method"] == METHODS[0]))
    moved["similarity"] = 0.9 - 0.2 * moved["strength"] + 0.05 * rng.random(len(moved))
    moved["agreement"] = 0.7 - lost + 0.2 * rng.random(len(moved))
    write("tables/moved_prompts/samples.parquet", moved)
    for number, training in enumerate(trainings_of("tables/truth/")):
        if training == "main":
            copies = np.repeat([16, 6, 1, 0], [24, 48, 120, 192])
            names = [f"m{k}" for k in range(len(copies))]
        else:
            copies = np.roll(np.repeat([16, 6, 1, 0], [16, 16, 32, 32]), 32 * number)
            names = [f"p{k}" for k in range(96)]
        chance = np.select([copies == 16, copies == 6], [0.6, 0.5], 0.02) * (0.6 if "growth" in training else 1)
        reproduced = rng.random(len(copies)) < chance
        pictures = pd.DataFrame({"id": names, "copies": copies, "reproduced": reproduced})
        write(f"tables/truth/{training}/pictures.parquet", pictures)
    rehearsed = [asked for asked in CLAIMS.values() if asked["items"].startswith("tables/audits")]
    outcomes = sorted({side["outcome"] for asked in rehearsed for side in sides(asked)})
    for path in sorted({filled(asked["items"], name) for asked in rehearsed for name in asked["trainings"]}):
        count = 24 if "/guard/" in path else 1000
        made = {name: rng.random(count) ** (0.1 if effect else 1.0) for name in outcomes}
        write(path, pd.DataFrame({"id": [f"r{k}" for k in range(count)], "copies": 2} | made))
    maps = [asked for asked in CLAIMS.values() if asked["items"].startswith("tables/localise")]
    for training in trainings_of("tables/localise"):
        found = pd.DataFrame({"id": [f"s{k}" for k in range(30)], "slot": range(30)})
        for side in (side for asked in maps for side in sides(asked)):
            name = side["outcome"].strip("`")
            lifted = 0.2 * effect * name.startswith("curvature")
            found[name] = np.clip(0.5 + lifted + rng.normal(0, 0.1, len(found)), 0, 1)
        write(f"tables/localise/{training}/slots.parquet", found)
    lifts = rng.random(40) < 0.8
    copied = pd.DataFrame(
        {"id": [f"t{k}" for k in range(40)], "copied_at": np.where(np.arange(40) < 30, 200.0, np.nan)}
    )
    write("tables/fine_tuning/pictures.parquet", copied)
    looks = [
        pd.DataFrame({"item": [f"{kind}{k}" for k in range(count)], "trained": kind == "t"}).assign(
            step=step, detector="loss"
        )
        for step, (kind, count) in product((0, 100, 200, 300), (("t", 40), ("h", 150)))
    ]
    own = {item: rng.normal() for item in pd.concat(looks)["item"].unique()}
    for look in looks:
        rises = look["trained"] & np.resize(lifts, len(look))
        changes = 6 * effect * rises * (look["step"] > 0) + 0.5 * rng.normal(size=len(look))
        look["score"] = look["item"].map(own) + changes
    write("tables/fine_tuning/scores.parquet", pd.concat(looks, ignore_index=True))
    for training in trainings_of("tables/drawings/prompts"):
        role = training.partition("-")[0]
        chance = np.where(whole["planted_in"] == role.replace("threshold", "exchanged"), 0.7, 0.1)
        samples = [whole[["id"]].assign(guidance=g, copies_own=rng.random(len(whole)) < chance) for g in (1.0, 3.0)]
        write(f"tables/arm/{training}/samples.parquet", pd.concat(samples))
        own = whole[(whole["trigger"] != "") & (whole["planted_in"] == role)]["id"]
        tokens = [(way, i, place, token) for way in WAYS for i in own for place, token in enumerate(("a", "zog", "b"))]
        tokens = pd.DataFrame(tokens, columns=["way", "id", "place", "token"])
        tokens["significance"] = rng.random(len(tokens)) + 0.5 * effect * (tokens["token"] == "zog")
        write(f"tables/blame/{training}/tokens.parquet", tokens)
    kind = {}  # what an item is by itself, the same for all detectors
    for asked in CLAIMS.values():
        for side, training in product(sides(asked), asked["trainings"]) if asked["statistic"] == "AUROC" else ():
            path, about = (
                filled(side["table"], training),
                items({**asked, "join": []}, training),
            )
            if Path(path).exists():
                continue
            signal = np.log2(about["copies"] + 1) / 4 + about.get("reproduced", 0.0)
            if "planted_in" in about:
                signal = signal * (about["planted_in"] == training)
            signal = effect * signal.to_numpy(float)
            own = np.array([kind.setdefault(item, rng.normal()) for item in about.index])
            rows = [
                pd.DataFrame(
                    {"item": about.index, "setting": setting, "score": own + signal + rng.normal(size=len(own))}
                )
                for setting in settings_of(path)
            ]
            write(path, pd.concat(rows))


def trainings_of(start: str) -> list[str]:
    """All trainings of the criteria whose table of items is named so."""
    found = [a for a in CLAIMS.values() if a["items"].startswith(start)]
    names = [name for a in found for name in (*a["trainings"], *(n for s in sides(a) for n in s.get("trainings", [])))]
    return list(dict.fromkeys(names))


@pytest.mark.ci  # the committed claims are found again one by one above
@pytest.mark.parametrize("effect", [1.2, 0.0])
def test_a_made_up_study_is_judged_as_here(effect: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book").mkdir()
    registry: dict[str, dict[str, Any]] = {}
    for name in CLAIMS:
        section, _, short = name.partition(".")
        registry.setdefault(section, {})[short] = ENTRIES[name]
    (tmp_path / "book/claims.yml").write_text(yaml.safe_dump(registry, sort_keys=False))
    make_up(np.random.default_rng(1), effect)
    monkeypatch.setattr(pd, "read_parquet", cache(pd.read_parquet))
    rows = claims.collect()
    assert [row["id"] for row in rows if row["verdict"] != "open"] == list(CLAIMS), rows
    for row in rows:
        check(row, CLAIMS[row["id"]])


def test_on_models_that_saw_nothing_detectors_lie_at_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of pictures by a model that never saw them, over the trainings in exchanged roles: 90 % hold 0.5."""
    monkeypatch.chdir(ROOT)
    asked, held = CLAIMS["volume.trained_above_unseen"], {}
    scored = [*ROOT.glob("tables/scores/unseen/*.parquet"), *ROOT.glob("tables/scores/pairs-blind/*.parquet")]
    for positive in ("copies == 1", "copies == 10", "copies == 16"):
        for path, setting in [(table, name) for table in scored for name in read(table)["setting"].unique()]:
            side = {"table": str(path.relative_to(ROOT)), "setting": {"rate_at": None} | parsed(setting)}
            _, low, high, _ = recomputed({**asked, "positive": positive, "minus": None, "first": side})
            held[positive, path.parent.name, path.stem, setting] = low <= 0.5 <= high
    assert len(held) >= 12
    assert np.mean(list(held.values())) >= 0.9, [key for key, holds in held.items() if not holds]
