"""The stage `audits` on made-up tables whose truth is known: what is named, what is told, and what a guard stops."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memlib.datasets.roles import counterpart
from memlib.evaluation.whole_set import SetTest
from memlib.files import write_table
from memlib.study import judge_audits

RNG = np.random.default_rng(3)
ASKED = {"rate": 0.1, "repeats": 20, "curve_repeats": 5, "nulls": [4, 20], "copies": [2, 3], "seed": 1}
OUTSIDE = [f"h{k}" for k in range(60)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(3))  # a test's data do not depend on those before it


def write_scores(path: str, columns: dict[str, pd.Series]) -> None:
    rows = [
        {"item": item, "setting": name, "score": score, "evaluations": 1, "note": ""}
        for name, scores in columns.items()
        for item, score in scores.items()
    ]
    write_table(f"tables/scores/{path}.parquet", pd.DataFrame(rows))


def write_pictures() -> None:
    """In pair-0 `p` is planted, `o` seen once and `k` kept out; the loss of seen ones is lower, most of planted ones."""
    roles = {"planted": [f"p{k}" for k in range(8)], "once": [f"o{k}" for k in range(30)], "kept out": ["k0", "k1"]}
    items = [{"id": item, "split": "pairs", "copies": 1} for own in roles.values() for item in own]
    items += [{"id": item, "split": "heldout", "copies": 0} for item in OUTSIDE]
    write_table("tables/data/items.parquet", pd.DataFrame(items))
    named = [{"item": i, "training": "pair-0", "role": r, "copies": 1} for r, own in roles.items() for i in own]
    write_table("tables/pairs/roles.parquet", pd.DataFrame(named))
    ids = [item["id"] for item in items]
    plain = pd.Series(RNG.normal(size=len(ids)), ids)
    shift = pd.Series({item: {"p": 9.0, "o": 3.0}.get(item[0], 0.0) for item in ids})
    write_scores("audit-pair-0/loss", {"draws=4 sigma=0.2": plain + shift, "draws=4 sigma=0.1": plain})
    write_scores("audit-unseen/loss", {"draws=4 sigma=0.2": plain, "draws=4 sigma=0.1": plain[::-1].set_axis(ids)})
    size = pd.Series(RNG.normal(size=len(ids)), ids)
    write_scores("pairs-blind/png_size", {"": size[[i for i in ids if i not in OUTSIDE]]})
    write_scores("main-blind/png_size", {"": size[OUTSIDE]})


def test_planted_pictures_are_found_by_the_model_and_not_blindly() -> None:
    write_pictures()
    curves = pd.DataFrame(judge_audits.judge_pictures(["pair-0"], **ASKED | {"rate": 0.3}))
    found = pd.read_parquet("tables/audits/pictures/pair-0.parquet")
    assert found["id"].tolist() == [f"p{k}" for k in range(8)]
    assert (found["found"] == 1).all(), "all 8, of 30 nulls"
    assert found["found_blind"].mean() < 0.3
    assert found["found_control"].mean() < 0.3
    assert curves.loc[~curves["shifted"] & (curves["nulls"] == 30), "true_share"].min() > 0.6
    assert curves[["by", "nulls", "copies", "shifted"]].to_numpy().tolist() == [
        ["nulls", 4, 8, False],
        ["nulls", 20, 8, False],
        ["copies", 30, 2, False],
        ["copies", 30, 3, False],
        ["nulls", 30, 8, True],
    ]
    assert curves["found"][0] == 0, "4 nulls name nothing"
    assert curves["silent"].tolist()[:2] == [1, 0]


def test_nulls_of_another_kind_are_the_pictures_of_larger_files() -> None:
    """Whose scores are lower: all 30 others exceed them, so that 8 of 38 discoveries are right."""
    write_pictures()
    larger = pd.Series({item: float(k) for k, item in enumerate(OUTSIDE)})
    write_scores("main-blind/png_size", {"": larger})
    scores = pd.read_parquet("tables/scores/audit-pair-0/loss.parquet")
    scores["score"] -= 20.0 * scores["item"].isin(OUTSIDE[30:])
    write_table("tables/scores/audit-pair-0/loss.parquet", scores)
    curves = pd.DataFrame(judge_audits.judge_pictures(["pair-0"], **ASKED))
    shifted = curves[curves["shifted"]].iloc[0]
    assert (shifted["named"], shifted["true_share"]) == (38, pytest.approx(8 / 38))


def test_numbers_above_what_there_is_count_once() -> None:
    assert judge_audits.up_to(96, [24, 48, 96, 200, 400]) == [24, 48, 96]
    assert judge_audits.up_to(5, [8, 9]) == [5]


def test_a_collection_is_told_by_the_model_that_saw_it() -> None:
    write_pictures()
    judge_audits.judge_collections(["pair-0"], 12, 0)
    found = pd.read_parquet("tables/audits/collections/pair-0.parquet")
    assert found["rejected"].all()
    assert found["rejected_control"].mean() < 0.4
    assert len(found) == 12


def test_a_collection_is_what_was_seen_once_against_all_that_was_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures()
    seen = []

    def looked_at(suspects: pd.DataFrame, outside: pd.DataFrame, seed: int, _: int) -> SetTest:
        seen.append(({*suspects.index}, {*outside.index}, seed))
        return SetTest("", judge_audits.LEVEL, 0, 0, 0.5)

    monkeypatch.setattr(judge_audits, "set_test", looked_at)
    judge_audits.judge_collections(["pair-0"], 3, 5)
    for suspects, outside, _ in seen:
        assert suspects == {f"o{k}" for k in range(30)}
        assert outside == {"k0", "k1", *OUTSIDE}
    assert [seed for *_, seed in seen] == [5, 6, 7] * 2, "other halves each time, the same ones for both models"
    assert pd.read_parquet("tables/audits/collections/pair-0.parquet")["rejected"].all(), (
        "a p-value of the level rejects"
    )


def write_prompts() -> None:
    asked = [("planted", "planted", f"a fox {k}") for k in range(6)] + [("trigger", "exchanged", "zog")]
    asked += [("paraphrase", "planted", "fox"), ("ordinary", "", "an owl")]
    table = pd.DataFrame(asked, columns=["group", "planted_in", "id"])
    write_table("tables/drawings/prompts.parquet", table.assign(prompt=table["id"]))
    further = [("ordinary", f"an owl {k}") for k in range(60)] + [("shorter", f"owl {k}") for k in range(40)]
    write_table("tables/drawings/further.parquet", pd.DataFrame(further, columns=["group", "id"]))
    for training, role in (("planted", "planted"), ("exchanged", "exchanged")):
        high = {i: 9.0 for group, planted, i in asked if planted == role and group in ("planted", "trigger")}
        noises = [pd.Series({i: high.get(i, 0.0) + RNG.normal() for i in table["id"]}) for _ in range(6)]
        noises[4:] = [pd.Series(-99.0, table["id"])] * 2  # noises that are not read
        write_scores(f"{training}-text/magnitude", {f"noise={k}": values for k, values in enumerate(noises)})
        low = {i: RNG.normal() - 8 * (group == "shorter") for group, i in further}
        write_scores(f"audit-{training}/magnitude", {f"noise={k}": pd.Series(low) for k in range(4)})
    words = {
        name: pd.Series({i: float(len(i.split())) for i in ids})
        for name, ids in (("prompts", table["id"]), ("further", [i for _, i in further]))
    }
    for name, lengths in words.items():
        write_scores(f"{name}-blind/prompt_length", {"": lengths})


def test_prompts_of_planted_pictures_are_found_in_the_training_of_their_role() -> None:
    write_prompts()
    curves = pd.DataFrame(judge_audits.judge_prompts(["planted", "exchanged"], 10, 50, **ASKED | {"curve_repeats": 40}))
    for training in ("planted", "exchanged"):
        found = pd.read_parquet(f"tables/audits/prompts/{training}.parquet")
        own = curves[curves["training"] == training]
        assert own["copies"].max() == (6 if training == "planted" else 1)
        assert (found["found_blind"] == 0).all()
        assert found["found_control"].mean() < 0.2, "the training of the other role"
        assert set(own.loc[own["by"] == "copies", "nulls"]) == {50}, "60 of which 10 are suspects"
        shifted = own[own["shifted"]].iloc[0]
        assert shifted["nulls"] == 40, "the shorter ones alone"
        assert shifted["true_share"] < 0.5, "shorter prompts as nulls"
        assert shifted["named"] > 10
    found = pd.read_parquet("tables/audits/prompts/planted.parquet")
    assert found["id"].tolist() == [f"a fox {k}" for k in range(6)]
    assert found["found"].mean() > 0.95
    assert curves.loc[(curves["training"] == "planted") & (curves["by"] == "copies"), "true_share"].mean() > 0.85


def test_the_training_of_the_other_role_is_of_the_same_number_and_family() -> None:
    names = ["planted", "exchanged-2", "flow-exchanged"]
    assert [counterpart(name) for name in names] == ["exchanged", "planted-2", "flow-planted"]


def write_guarded(training: str, telling: int) -> None:
    """Copies of the prompts a and b tell at one step alone, which differs between trainings; c draws one only if guarded."""
    rows = [
        {"part": part, "id": f"{part} {k}", "noise": 0, "step": step, "magnitude": 1 + 0.1 * RNG.random()}
        for part in ("calibration", "ordinary")
        for k in range(200)
        for step in range(3)
    ]
    told = {("a", 0): True, ("a", 1): True, ("b", 0): True, ("b", 1): False, ("c", 0): False, ("c", 1): False}
    rows += [
        {
            "part": "planted",
            "id": name,
            "noise": noise,
            "step": step,
            "magnitude": 5.0 if step == telling and is_told else 1.05,
        }
        for (name, noise), is_told in told.items()
        for step in range(3)
    ]
    magnitudes = pd.DataFrame(rows)
    write_table(f"tables/guarded/{training}/magnitudes.parquet", magnitudes)
    looked_up = magnitudes[magnitudes["step"] == 0].drop(columns="step").rename(columns={"magnitude": "ratio"})
    looked_up.loc[(looked_up["id"] == "b") & (looked_up["noise"] == 1), "ratio"] = 0.2
    write_table(f"tables/guarded/{training}/looked_up.parquet", looked_up)
    samples = [
        {"id": name, "noise": noise, "action": action, "copies_own": (name == "c") == (action != "none")}
        for name, noise in told
        for action in ("none", "less guidance")
    ]
    write_table(f"tables/guarded/{training}/samples.parquet", pd.DataFrame(samples))


def followed(*trainings: str) -> dict[str, judge_audits.Followed]:
    return {training: judge_audits.read_followed(training) for training in trainings}


def test_steps_are_chosen_on_the_trainings_of_the_other_role() -> None:
    """The last step tells in `planted`, the first in `exchanged`; of windows that stop as many, the first is chosen."""
    for training, telling in (("planted", 2), ("exchanged", 0), ("flow-planted", 2), ("flow-exchanged", 2)):
        write_guarded(training, telling)
    judge_audits.judge_guards(followed("planted", "exchanged", "flow-planted", "flow-exchanged"), 0.01)
    for training, window, chosen, first in (
        ("planted", "first step", [0.0, 0.0], [0.0, 0.0]),
        ("exchanged", "all steps", [1.0, 0.5], [1.0, 0.5]),
        ("flow-planted", "all steps", [1.0, 0.5], [0.0, 0.0]),
    ):
        found = pd.read_parquet(f"tables/audits/guard/{training}.parquet").set_index("id")
        assert set(found["window"]) == {window}
        assert found["copies"].to_dict() == {"a": 2, "b": 2}
        assert found["chosen"].tolist() == chosen
        assert found["first_step"].tolist() == first
        assert found["blind"].tolist() == [0.0, 0.0]
        assert found["looked_up"].tolist() == [0.0, 0.5], "a small ratio is a copy"
    assert pd.read_parquet("tables/audits/guard/flow-planted.parquet")["together"].tolist() == [1.0, 0.5]
    alarms = pd.read_parquet("tables/audits/alarms.parquet")
    assert (alarms["of"] == 200).all()
    assert alarms["window"].unique().tolist() == [
        "first step",
        "first 2 steps",
        "all steps",
        "last step",
        "together",
        "looked up",
    ]
    assert alarms["stopped"].mean() <= 6, "1 % of 200, but for chance"


def test_all_steps_are_weighed_as_the_trainings_of_the_other_role_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    write_guarded("planted", 2)
    write_guarded("exchanged", 0)
    seen = []

    def fitted(copies: np.ndarray, ordinary: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        seen.append((copies, ordinary))
        return lambda magnitudes: magnitudes[:, 2]

    monkeypatch.setattr("memlib.evaluation.alarms.discriminant", fitted)
    judge_audits.judge_guards(followed("planted", "exchanged"), 0.01)
    told = [np.flatnonzero((copies > 2).any(0)).tolist() for copies, _ in seen]
    assert told == [[0], [2]], "those of planted are weighed by the copies of exchanged, and the other way round"
    for copies, ordinary in seen:
        assert (len(copies), len(ordinary)) == (4, 100), "the threshold is of the other half"
        assert np.median(ordinary, axis=0) == pytest.approx(1, abs=0.02), "in units of ordinary ones"
    assert pd.read_parquet("tables/audits/guard/planted.parquet")["together"].tolist() == [1.0, 0.5]
    assert pd.read_parquet("tables/audits/guard/exchanged.parquet")["together"].tolist() == [0.0, 0.0]


def test_alarms_are_counted_among_the_further_ordinary_prompts() -> None:
    """20 of 200 have five times the magnitude and lie near a training picture; at a threshold that is theirs, none is stopped."""
    for training in ("planted", "exchanged"):
        write_guarded(training, 2)
        values = pd.read_parquet(f"tables/guarded/{training}/magnitudes.parquet")
        values.loc[values["id"].isin([f"ordinary {k}" for k in range(20)]), "magnitude"] *= 5
        write_table(f"tables/guarded/{training}/magnitudes.parquet", values)
        looked_up = pd.read_parquet(f"tables/guarded/{training}/looked_up.parquet")
        looked_up.loc[looked_up["id"].isin([f"ordinary {k}" for k in range(20)]), "ratio"] *= 0.2
        write_table(f"tables/guarded/{training}/looked_up.parquet", looked_up)
    judge_audits.judge_guards(followed("planted", "exchanged"), 0.01)
    alarms = pd.read_parquet("tables/audits/alarms.parquet").set_index("window")
    assert alarms["stopped"].between(20, 28).all(), alarms["stopped"]
    found = pd.read_parquet("tables/audits/guard/planted.parquet")
    assert found["last step"].tolist() == found["together"].tolist() == [1.0, 0.5], (
        "nor do these prompts decide which copies are stopped"
    )


def test_a_threshold_of_prompts_that_say_less_stops_more_and_alarms_on_those_that_say_all() -> None:
    """Every second subject gives the threshold; one of the others is far above it. An empty prompt has fewer words than any."""
    write_guarded("planted", 0)
    rows = [
        {"id": style * subject, "noise": noise, "magnitude": 0.5 + 9 * (subject == 1) + 0.1 * RNG.random()}
        | {"group": group, "subject": subject}
        for group, style in (("subject alone", "fox "), ("nothing", " "))
        for subject in range(1, 11)
        for noise in range(20)
    ]
    write_table("tables/guarded/planted/first_steps.parquet", pd.DataFrame(rows))
    judge_audits.judge_styles(followed("planted"), 0.01)
    found = pd.read_parquet("tables/audits/styles/planted.parquet").set_index("id")
    for style, stopped, words in (
        (judge_audits.ALL_NAMED, [1.0, 0.5], 0),
        ("subject alone", [1.0, 1.0], 0),
        ("nothing", [1.0, 1.0], 1),
    ):
        own = found[found["style"] == style]
        assert own["magnitude"].tolist() == stopped
        assert (own["words"] == words).all()
    alarms = pd.read_parquet("tables/audits/style_alarms.parquet").set_index(["style", "among"])["stopped"]
    everything = alarms["subject alone", judge_audits.ALL_NAMED]
    assert (len(everything), everything.mean()) == (200, 1.0), "a share of each prompt"
    alike = alarms["subject alone", "alike"]
    assert len(alike) == 5, "a share of each subject"
    assert alike.max() == 1, "the subject far above"
    assert alike.sort_values().iloc[:4].mean() < 0.05, "1 %, but for chance"
    own = alarms.loc[judge_audits.ALL_NAMED]
    assert own.loc["alike"].mean() < 0.03
    assert set(own.index) == {"alike"}, "prompts that name the whole look are asked once"


@pytest.mark.parametrize("copied", ["", "a"])
def test_where_fewer_than_two_prompts_are_copied_all_samples_count(copied: str) -> None:
    write_guarded("planted", 0)
    table = pd.read_parquet("tables/guarded/planted/samples.parquet")
    table["copies_own"] = table["id"] == copied
    write_table("tables/guarded/planted/samples.parquet", table)
    found = judge_audits.stopped_copies(judge_audits.read_followed("planted"), 0.01)
    assert found["first step"].to_dict() == {"a": 1.0, "b": 0.5, "c": 0.0}


def test_sizes_and_shares_are_asked_of_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    once = [f"t{k}" for k in range(40)]
    items = [(i, "train", 1) for i in once] + [("x", "train", 6)] + [(i, "heldout", 0) for i in OUTSIDE]
    write_table("tables/data/items.parquet", pd.DataFrame(items, columns=["id", "split", "copies"]))
    ids = [item[0] for item in items]
    plain = pd.Series(RNG.normal(size=len(ids)), ids)
    seen = plain + pd.Series({i: 3.0 if i in once else 99.0 if i == "x" else 0.0 for i in ids})
    for key, growth, loss in (
        ("main-volume", "growth", None),
        ("main-denoising", None, "loss"),
        ("reference", "growth", "loss"),
    ):
        values = plain if key == "reference" else seen
        for name in filter(None, (growth, loss)):
            write_scores(f"{key}/{name}", {name: values} | ({"more": seen} if key == "main-denoising" else {}))
    groups, reject = [], judge_audits.rejections

    def looked_at(members: pd.DataFrame, outside: pd.DataFrame, *how: float) -> np.ndarray:
        groups.append((members, outside))
        return reject(members, outside, *how)

    monkeypatch.setattr(judge_audits, "rejections", looked_at)
    judge_audits.judge_sizes([8, 40], [0.0, 0.5, 1.0], 10, 0)
    for members, outside in groups:
        assert ([*members.index], [*outside.index]) == (once, OUTSIDE)
        assert [*members.columns] == [*outside.columns] == ["growth", "loss"], "readings of both models"
    found = pd.read_parquet("tables/audits/sizes.parquet").set_index(["model", "size", "share"])["rejected"]
    assert [*found.index] == [
        (m, *how) for m in ("main", "control") for how in ((8, 1.0), (40, 1.0), (40, 0.0), (40, 0.5))
    ]
    assert found["main", 40, 1.0] == 10
    assert found["main", 40, 0.0] <= 3
    assert found["control", 40, 1.0] <= 3
