"""The bench: nothing is chosen by what it is judged on, and every figure is what it says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memlib import bench as study
from memlib.datasets.roles import FREE
from memlib.evaluation import bench
from memlib.evaluation.measures import auroc
from memlib.tables import setting_name

ABOUT = {"family": "f", "training": "t", "kind": "copies", "contrast": "c", "items": "pictures"}


def columns() -> pd.DataFrame:
    """Of a loss with three levels and two prices, a length, one with three noises, a fitted one and a blind one."""
    named = {
        "loss": {setting_name({"sigma": sigma, "draws": k}): k for sigma in (0.1, 0.2, 0.4) for k in (1, 4)},
        "length": {"sigma=0.2": 1},
        "magnitude": {f"noise={k} noises=3": 1 for k in range(3)},
        "gsa": {f"layer={name}": 10 for name in "abcd"},
        "png_size": {"": 0},
    }
    prices = {(detector, name): price for detector, own in named.items() for name, price in own.items()}
    index = pd.MultiIndex.from_tuples(prices, names=["detector", "setting"])
    return pd.DataFrame({"evaluations": [*prices.values()]}, index)


def roles(seed: int, n: int, trainings: int) -> pd.DataFrame:
    """Pictures in roles that turn from training to training, and the half that each is in."""
    rows = pd.DataFrame(
        {
            "item": np.tile([f"i{k}" for k in range(n)], trainings),
            "training": np.repeat([f"t{k}" for k in range(trainings)], n),
            "group": [str((k + t) % 2) for t in range(trainings) for k in range(n)],
            "reproduced": False,
        }
    )
    rows["positive"] = rows["group"] == "1"
    rows["choosing"] = bench.halves(rows, "group", seed)
    return rows


def made(seed: int = 0, n: int = 60, trainings: int = 3, signal: float = 0.0, positive: object = None) -> bench.Case:
    """A case of pictures whose roles turn from training to training; scores of noise, in part the item's own, and a signal."""
    rng = np.random.default_rng(seed)
    about, rows = columns(), roles(seed, n, trainings)
    own = np.tile(rng.normal(size=(n, len(about))), (trainings, 1))
    values = own + rng.normal(size=own.shape) + signal * rows["positive"].to_numpy()[:, None]
    scores = pd.DataFrame(values, pd.MultiIndex.from_frame(rows[["training", "item"]]), about.index)
    if positive is not None:
        rows["positive"] = positive(rng, rows)
    return bench.case(ABOUT, rows, *bench.with_means(scores, about))


def shuffled(rng: np.random.Generator, rows: pd.DataFrame) -> pd.Series:
    """Labels of a training that belong to other items."""
    return rows.groupby("training")["positive"].transform(lambda own: rng.permutation(own.to_numpy()))


def test_with_shuffled_labels_every_row_is_at_one_half() -> None:
    """Of detectors that see the labels: over many shuffles, within the intervals as often as these say."""
    found = pd.concat(
        [bench.judge(made(seed, signal=2.0, positive=shuffled)).assign(seed=seed) for seed in range(40)],
        ignore_index=True,
    )
    value = found["AUROC"].map(lambda e: e.value)
    held = found["AUROC"].map(lambda e: e.low <= 0.5 <= e.high)
    by_detector = pd.DataFrame(
        {"mean": value.groupby(found["detector"]).mean(), "held": held.groupby(found["detector"]).mean()}
    )
    together = {bench.RANKS, bench.ADAPTIVE, bench.LEARNED}
    assert {"loss", "gsa, learned", "png_size"} | together <= set(by_detector.index)
    error = value.groupby(found["detector"]).std() / 40**0.5
    assert ((by_detector["mean"] - 0.5).abs() < 4 * error).all(), by_detector
    assert (by_detector["held"] >= 0.85).all(), by_detector
    assert held.mean() > 0.93
    reached = found["FPR reached"].map(lambda e: e.value).groupby(found["detector"] == bench.ADAPTIVE).mean()
    rates = found["FPR"].groupby(found["detector"] == bench.ADAPTIVE).unique()
    assert (rates[False], rates[True]) == (0.03, 0.1)
    assert abs(reached[False] - 2 / 46) < 0.015, (
        "of 45 negatives one may exceed the threshold, which is the second largest"
    )
    assert abs(reached[True] - 3 / 23.5) < 0.03, "two of the 22 or 23 that it has not learned from"
    differences = found.loc[found["detector"] != "loss", "minus loss"].map(lambda e: e.low <= 0 <= e.high)
    assert differences.mean() > 0.93
    assert found["chosen by"][found["detector"] == "loss"].mean() > 0.52, "the choice itself is lucky"


def test_nothing_of_the_reported_half_reaches_a_choice() -> None:
    case = made(1, signal=0.5)
    turned = case.scores.copy()
    turned[~case.choosing] *= -3.0
    other = bench.Case(**ABOUT, rows=case.rows, scores=turned, about=case.about)
    first, second = (bench.judge(each).set_index("detector") for each in (case, other))
    second = second.loc[first.index]
    assert first["setting"].equals(second["setting"])
    labelled = first.index.drop([bench.RANKS, bench.ADAPTIVE])  # ranks are among all items, without a label
    assert first.loc[labelled, "chosen by"].equals(second.loc[labelled, "chosen by"])
    for name in first.index.drop(bench.ADAPTIVE):
        assert first["AUROC"][name].value > 0.5 > second["AUROC"][name].value


def test_no_label_of_the_reported_half_reaches_a_combination() -> None:
    case = made(1, signal=0.5)
    flipped = case.rows.assign(positive=case.rows["positive"] ^ ~case.choosing)
    first, second = (
        bench.with_combinations(bench.Case(**ABOUT, rows=rows, scores=case.scores, about=case.about)).scores
        for rows in (case.rows, flipped)
    )
    pd.testing.assert_frame_equal(first, second)
    found = first[bench.ADAPTIVE, ""]
    assert found[~case.choosing].notna().all()
    assert found[case.choosing & case.sides[0]].isna().all(), "no positive is known to it"
    assert 0 < found[case.choosing].notna().sum() < (case.choosing & case.sides[1]).sum(), (
        "nor nulls that it learned from"
    )


@given(st.integers(0, 99), st.integers(1, 4))
def test_an_item_is_in_one_half_in_all_trainings(seed: int, trainings: int) -> None:
    rows = roles(seed, 40, trainings)
    assert (rows.groupby("item")["choosing"].nunique() == 1).all()
    counts = rows.groupby(["training", "group", "choosing"]).size().unstack()
    assert (counts[True] - counts[False]).abs().max() <= 1


def test_a_training_without_enough_of_a_side_is_left_out() -> None:
    case = made(0, 20)
    rows = case.rows.copy()
    rows.loc[(rows["training"] == "t1") & rows["choosing"], "positive"] = False
    scores = case.scores.set_axis(pd.MultiIndex.from_frame(rows[["training", "item"]]))
    kept = bench.case(ABOUT, rows, scores, case.about)
    assert set(kept.rows["training"]) == {"t0", "t2"}
    assert len(kept.scores) == len(kept.rows)
    assert bench.case(ABOUT, rows.assign(positive=True), scores, case.about) is None


def test_a_row_is_what_its_parts_say() -> None:
    case = made(3, signal=0.8)
    rows = bench.judge(case).set_index("detector")
    row = rows.loc["loss"]
    column = case.scores["loss", row["setting"]]
    half = ~case.choosing
    expected = auroc(column[half], case.rows["positive"][half], case.rows["item"][half], case.rows["training"][half])
    assert row["AUROC"] == expected.interval()
    assert row["minus loss"].value == 0
    negative = column[case.choosing & ~case.rows["positive"]]
    allowed = int(0.03 * len(negative))
    threshold = np.sort(negative)[-allowed - 1]
    assert (negative > threshold).mean() <= 0.03 < (negative >= threshold).mean()
    assert row["FPR reached"].value == pytest.approx((column[half & ~case.rows["positive"]] > threshold).mean())
    assert (row["positives"], row["negatives"]) == (45, 45)
    gap = rows.loc["length", "minus loss"].value
    assert gap == pytest.approx(rows.loc["length", "AUROC"].value - row["AUROC"].value)


def test_noises_are_judged_one_by_one_and_by_their_mean() -> None:
    case = made(4, signal=0.8)
    by_name = {setting.name: setting for setting in bench.settings(case.about) if setting.detector == "magnitude"}
    assert {name: each.evaluations for name, each in by_name.items()} == {"": 1, "noises=3": 3}
    assert len(by_name[""].columns) == 3
    np.testing.assert_allclose(
        case.scores["magnitude", "noises=3"],
        case.scores["magnitude"][[f"noise={k} noises=3" for k in range(3)]].mean(axis=1),
    )
    one, three = (bench.measured(case, by_name[name]).value for name in ("", "noises=3"))
    singles = [
        auroc(
            case.scores["magnitude", f"noise={k} noises=3"][~case.choosing], case.rows["positive"][~case.choosing]
        ).value
        for k in range(3)
    ]
    assert min(singles) < one < max(singles)
    assert three > one


def test_what_another_detector_gives_is_left_out() -> None:
    names = [
        *(("flipd", f"quantity={each} sigma=0.2") for each in ("flipd", "length", "rate")),
        *(("sima", f"power={k} sigma=0.2") for k in (2, 4)),
        *(("anisotropy", f"noise=0 noises=4 part={each}") for each in ("alignment", "magnitude")),
        ("length", "sigma=0.2"),
    ]
    index = pd.MultiIndex.from_tuples(names, names=["detector", "setting"])
    scores = pd.DataFrame(np.zeros((2, len(index))), columns=index)
    kept, about = bench.without_repeated(scores, pd.DataFrame({"evaluations": 1}, index))
    assert kept.columns.tolist() == [names[k] for k in (0, 4, 5, 7)] == about.index.tolist()


def test_a_budget_leaves_out_what_is_dearer() -> None:
    rows = bench.judge(made(5, signal=0.5), budget=3)
    assert rows["evaluations"].max() <= 3
    assert rows.set_index("detector").loc["loss", "setting"].startswith("draws=1")
    assert "gsa" not in set(rows["detector"])
    prices = bench.frontier(made(5, signal=0.5))
    assert prices[prices["detector"] == "loss"]["evaluations"].tolist() == [1, 4]


def test_what_is_affordable_is_what_is_judged_for_the_budget() -> None:
    case = made(signal=1.0)
    found = bench.affordable(case, (1, 4, 64))
    columns = ["detector", "setting", "evaluations", "AUROC"]
    for budget, part in found.groupby("budget"):
        judged = bench.judge(case, budget)[columns].sort_values("detector", ignore_index=True)
        pd.testing.assert_frame_equal(part[columns].sort_values("detector", ignore_index=True), judged)
    assert found.groupby("budget").size().is_monotonic_increasing
    assert found[[*ABOUT]].drop_duplicates().to_dict("records") == [ABOUT]


def test_the_best_for_a_budget_is_chosen_by_the_other_half() -> None:
    case = made(5, signal=0.5)
    found = bench.for_budgets(case, [0.5, 1, 3, 10]).set_index("budget")
    assert found.index.tolist() == [1, 3, 10], "nothing that asks the model is cheaper than 1"
    assert (found["evaluations"] <= found.index).all()
    for budget, row in found.iterrows():
        affordable = bench.asking(case, budget)
        assert row["chosen by"] == max(bench.chosen(case, [each])[1] for each in affordable)
        assert not {"png_size", "loss_curve", "nearest_training"} & {each.detector for each in affordable}
        (setting,) = [e for e in affordable if (e.detector, e.name) == (row["detector"], row["setting"])]
        assert row["AUROC"] == bench.measured(case, setting).interval()
        assert row["minus baseline"].value == pytest.approx(row["AUROC"].value - row["baseline"].value)
    few = case.about.index.get_level_values(0) != "loss"
    other = bench.Case(**ABOUT, rows=case.rows, scores=case.scores.loc[:, few], about=case.about[few])
    assert bench.for_budgets(other, [4]).loc[0, ["baseline", "minus baseline"]].tolist() == [None, None]


def test_combinations_stand_beside_their_best_part() -> None:
    case = made(6, signal=0.5)
    found = bench.combined(case).set_index("detector")
    assert found.index.tolist() == [bench.LEARNED, bench.RANKS, bench.ADAPTIVE]
    (best,) = bench.for_budgets(case, [float("inf")]).to_dict("records")
    assert set(found["best part"]) == {best["detector"]}
    for row in found.itertuples():
        assert row[-1].value == pytest.approx(row.AUROC.value - best["AUROC"].value)
    assert found.loc[bench.RANKS, "minus best part"].value > 0.1, "many weak ones are stronger together"


def test_correlations_are_of_chosen_settings_on_the_reported_half() -> None:
    case = made(6, signal=0.5)
    together = bench.correlations(case)
    assert np.allclose(np.diag(together), 1)
    assert np.allclose(together, together.T)
    setting, _ = bench.chosen(case, [each for each in bench.settings(case.about) if each.detector == "loss"])
    values = pd.DataFrame({"a": case.scores[setting.columns[0]], "b": case.scores["length", "sigma=0.2"]})[
        ~case.choosing
    ]
    parts = values.groupby(case.rows["training"][~case.choosing])
    expected = np.mean([part.corr("spearman").loc["a", "b"] for _, part in parts])
    assert together.loc["loss", "length"] == pytest.approx(expected)


def test_the_best_single_detector_is_chosen_by_the_other_half_and_set_beside_the_plain_one() -> None:
    cases = [made(seed, signal=0.5) for seed in (1, 2, 3)]
    judged = [bench.judge(case).assign(contrast=str(number)) for number, case in enumerate(cases)]
    control = judged[0].assign(kind="control", training="none")
    found = bench.best_single(pd.concat([*judged, control], ignore_index=True))
    assert found["contrast"].tolist() == ["0", "1", "2"], "a control asks for nothing"
    for rows, (_, best) in zip(judged, found.iterrows(), strict=True):
        rows = rows.set_index("detector")
        asked = rows.loc[["loss", "length", "magnitude", "gsa"]]
        assert best["detector"] == asked["chosen by"].idxmax()
        assert best["AUROC"] == rows.loc[best["detector"], "AUROC"]
        assert best["baseline"] == rows.loc["loss", "AUROC"]
        assert best["minus baseline"].value == pytest.approx(best["AUROC"].value - best["baseline"].value)
    assert found["detector"].nunique() > 1


def test_cases_are_asked_for_by_family_and_contrast() -> None:
    case = made(trainings=1)
    whole = {name: getattr(case, name) for name in ("rows", "scores", "about")}
    cases = [
        bench.Case(**ABOUT | {"family": family, "kind": kind, "contrast": contrast}, **whole)
        for family in ("a", "b")
        for kind, contrast in (("membership", "m"), ("memorisation", study.HEADLINES[0]), ("control", "m"))
    ]
    assert [(case.family, case.contrast) for case in study.selected(cases, None, None)] == [
        ("a", study.HEADLINES[0]),
        ("b", study.HEADLINES[0]),
    ]
    assert study.selected(cases[:1], None, None) == cases[:1], "there is no headline"
    assert len(study.selected(cases, "a", "m")) == 2
    assert len(study.selected(cases, None, "control")) == 2
    with pytest.raises(ValueError, match="there is no family 'c'; known: a, b"):
        study.selected(cases, "c", None)
    with pytest.raises(ValueError, match="there is no contrast 'membershp'; did you mean 'membership'"):
        study.selected(cases, None, "membershp")


def test_a_headline_on_which_the_plain_loss_is_right_always_gives_way() -> None:
    perfect, good, again = (made(seed, trainings=1, signal=signal) for seed, signal in ((0, 50.0), (1, 1.0), (2, 1.0)))
    about = ABOUT | {"contrast": study.HEADLINES[0]}
    cases = [
        bench.Case(**about | {"training": name}, rows=case.rows, scores=case.scores, about=case.about)
        for name, case in (("perfect", perfect), ("good", good), ("again", again))
    ]
    assert [case.training for case in study.selected(cases, None, None)] == ["good"]
    assert [case.training for case in study.selected(cases[::-1], None, None)] == ["again"]
    assert [case.training for case in study.selected(cases[:1], None, None)] == ["perfect"]


def test_without_models_on_the_bench_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*params.yaml; run this in the folder of the study"):
        study.entries(tmp_path)
    (tmp_path / "params.yaml").write_text("scores: {main: {}}\narm: {guidance: 3.0}")
    with pytest.raises(ValueError, match="has no entry bench-... in its section `scores`"):
        study.entries(tmp_path)
    (tmp_path / "params.yaml").write_text("scores: {bench-main: {}}\narm: {guidance: 3.0}")
    with pytest.raises(
        ValueError, match="there are no tables in tables/scores/bench-main; `dvc repro scores@bench-main`"
    ):
        study.entries(tmp_path)


def score_table(path: Path, items: list[str], settings: dict[str, int]) -> None:
    """A table of noise, written where a stage would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(item, setting, cost) for item in items for setting, cost in settings.items()]
    table = pd.DataFrame(rows, columns=["item", "setting", "evaluations"])
    table.assign(score=np.random.default_rng(0).normal(size=len(rows)), note="").to_parquet(path)


@pytest.fixture
def prompted(tmp_path: Path) -> Path:
    """A folder with a U-Net and a transformer in exchanged roles, prompts, and drawings of the planted ones."""
    arms = {"text_arms": {"planted": {}, "share-5": {"planted_share": 0.05}}, "flow_arms": {"flow-exchanged": {}}}
    entries = {
        "bench-planted": ("planted", "tables/drawings/prompts.parquet"),
        "bench-share-5": ("share-5", "tables/drawings/prompts.parquet"),
        "bench-flow-exchanged": ("flow-exchanged", "tables/drawings/prompts.parquet"),
        "bench-flow-drawings-exchanged": ("flow-exchanged", "results/drawings/judged"),
    }
    scores = {
        key: {"model": f"results/text/{name}", "items": {"source": path}} for key, (name, path) in entries.items()
    }
    sections = {"text_arm": {"planted_share": 0.25}, "flow_arm": {"planted_share": 0.2}}
    arm = {"guidance": 3.0, "sampling_steps": 25}
    parameters = {"scores": scores, "run": arms, "arm": arm} | sections
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(parameters))
    ids = [f"{role} {k}" for role in ("planted", "exchanged") for k in range(40)] + [f"ordinary {k}" for k in range(40)]
    role = [name.split()[0] for name in ids]
    prompts = pd.DataFrame({"id": ids, "group": ["planted"] * 80 + ["ordinary"] * 40, "copies": [4] * 80 + [1] * 40})
    prompts["planted_in"] = [name.replace("ordinary", "") for name in role]
    drawings = pd.DataFrame({"id": [f"drawing of {name}" for name in ids], "caption": ids, "copies": prompts["copies"]})
    drawings["split"] = [{"exchanged": FREE, "ordinary": "train"}.get(name, name) for name in role]
    (tmp_path / "tables/drawings").mkdir(parents=True)
    prompts.to_parquet(tmp_path / "tables/drawings/prompts.parquet")
    drawings.to_parquet(tmp_path / "tables/drawings/judged.parquet")
    for key, (name, path) in entries.items():
        folder = tmp_path / "tables/scores"
        items = ids if path.endswith("prompts.parquet") else drawings["id"].tolist()
        score_table(folder / key / "magnitude.parquet", items, {f"noise={k} noises=2": 1 for k in range(2)})
        own = folder / f"{name}-samples/nearest_training.parquet"
        score_table(own, ids[:80], {f"generations={k}": 0 for k in (1, 4)}) if name != "share-5" else None
        copied = pd.DataFrame({"id": ids, "guidance": 3.0, "copies_own": [0.75, 0.25] * 60})
        (tmp_path / "tables/arm" / name).mkdir(parents=True, exist_ok=True)
        pd.concat([copied, copied.assign(guidance=1.0, copies_own=0.0)]).to_parquet(
            tmp_path / "tables/arm" / name / "samples.parquet"
        )
    return tmp_path


def test_families_and_trainings_are_read_from_the_parameters(prompted: Path) -> None:
    known = study.entries(prompted)
    assert {name: (study.family_of(entry), entry["training"]) for name, entry in known.items()} == {
        "planted": ("latent U-Net", "planted share 25%"),
        "share-5": ("latent U-Net", "planted share 5%"),
        "flow-exchanged": ("flow transformer", "planted share 20%"),
        "flow-drawings-exchanged": ("flow transformer", "planted share 20%"),
    }


def test_what_is_planted_is_what_the_role_of_the_model_plants(prompted: Path) -> None:
    found = {(case.family, case.items, case.training, case.contrast): case for case in study.cases(0, prompted)}
    for family, items, share, positive, negative, prefix in (
        ("latent U-Net", "prompts", 25, "planted", "exchanged", ""),
        ("latent U-Net", "prompts", 5, "planted", "exchanged", ""),
        ("flow transformer", "prompts", 20, "exchanged", "planted", ""),
        ("flow transformer", "pictures", 20, "exchanged", "planted", "drawing of "),
    ):
        rows = found[family, items, f"planted share {share}%", f"planted against {FREE}"].rows
        assert set(rows["item"][rows["positive"]]) == {f"{prefix}{positive} {k}" for k in range(40)}
        assert set(rows["item"][~rows["positive"]]) == {f"{prefix}{negative} {k}" for k in range(40)}
        copied = found[family, items, f"planted share {share}%", "reproduced or not, x4"].rows
        assert set(copied["item"]) == set(rows["item"][rows["positive"]])
        assert set(copied["item"][copied["positive"]]) == {f"{prefix}{positive} {k}" for k in range(0, 40, 2)}


def test_samples_are_an_upper_bound_where_all_items_have_them_and_cost_what_they_do(prompted: Path) -> None:
    found = {(case.items, case.training, case.contrast): case for case in study.cases(0, prompted)}
    about = found["prompts", "planted share 20%", f"planted against {FREE}"].about["evaluations"]
    assert about.loc["nearest_training"].to_dict() == {"generations=1": 50, "generations=4": 200}
    assert about.loc["magnitude"].to_dict() == {"noise=0 noises=2": 1, "noise=1 noises=2": 1, "noises=2": 2}
    for items, share, contrast in (
        ("prompts", 20, "planted against ordinary"),
        ("prompts", 5, f"planted against {FREE}"),
        ("pictures", 20, f"planted against {FREE}"),
    ):
        case = found[items, f"planted share {share}%", contrast]
        assert set(case.scores.columns.get_level_values(0)) == {"magnitude"}
        assert case.scores.notna().all(axis=None)
