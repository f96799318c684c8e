"""What readers are shown in place of the code's names."""

from pathlib import Path

import pytest

from memlib.detectors import ALL, find
from memlib.evaluation.bench import ADAPTIVE, BASELINES, BLIND, GIVEN, LEARNED
from memlib.evaluation.bench import KINDS as OF_CASES
from memlib.files import read_json
from memlib.study.criteria import read_claims
from memlib.study.naming import (
    DETECTORS,
    KINDS,
    MEASURES,
    detector_in_words,
    question,
    remark,
    setting_in_words,
    statistic_in_words,
    training_in_short,
    with_code,
)
from memlib.tables import setting_name


def test_every_detector_has_words_of_its_own() -> None:
    assert DETECTORS.keys() == ALL.keys()
    assert len(set(DETECTORS.values())) == len(ALL)
    assert not [words for words in DETECTORS.values() if "_" in words]


def test_every_detector_says_what_it_measures_and_where_it_comes_from() -> None:
    assert MEASURES.keys() == ALL.keys()
    told = [what for what, _ in MEASURES.values()]
    assert len({*told}) == len(ALL)
    assert all(30 < len(what) < 120 or name in BLIND for name, (what, _) in MEASURES.items())
    assert all(source for _, source in MEASURES.values())


def test_a_way_of_training_fits_into_a_list() -> None:
    short = {
        "300 steps from the reference": "300 steps",
        "planted share 25%": "25% planted",
        "main, 1,100 steps": "main",
        "mine": "mine",
    }
    assert {name: training_in_short(name) for name in short} == short


def test_a_detector_is_told_in_words_and_typed_by_its_name() -> None:
    assert detector_in_words("gsa, learned") == "gradient of the loss, with labels"
    assert detector_in_words("all, by ranks") == "all, by ranks"
    assert detector_in_words("mine") == "mine"
    assert with_code("length") == "length of the prediction (length)"
    assert [with_code(name) for name in ("flipd", "mine", "all, learned")] == ["FLIPD", "mine", "all, with labels"]


def test_remarks_say_who_knows_more_and_who_less() -> None:
    assert remark("loss", BASELINES["pictures"]) == "plain baseline"
    assert remark("loss") == ""
    assert {remark(name) for name in BLIND} == {"never looks at the model"}
    assert remark("gsa, learned") == remark(LEARNED) == "fitted to labels"
    assert remark("growth") == ""
    assert all(remark(name) for name in (*GIVEN, ADAPTIVE)), "whoever is given more than the model and the item"
    assert remark("nearest_training") == "sees the training set"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ""),
        ("draws=4 prompt=True sigma=2.5", "4 noises, with the caption, at sigma 2.5"),
        ("draws=1 sigma=0.667", "1 noise, at sigma 0.667"),
        ("guidance=3 sampling_steps=25 sigma=9.33808 step=1 steps=4", "at step 2"),
        ("noises=4 sigma=inf", "4 noises, at pure noise"),
        (
            "directions=2 rate_at=0.1884 sigma_min=0.02 steps=4",
            "2 directions, 4 steps, the rate at sigma 0.19, from sigma 0.02",
        ),
        (
            "layer=up_blocks.1.resnets.0.norm1.bias sigmas=[0.1,0.8]",
            "2 levels from sigma 0.1 to 0.8, a layer of up block 1",
        ),
        ("layer=conv_in.bias", "a layer of conv in"),
        ("layer=2 noises=2", "2 noises, layer 2"),
        ("layer=all", "all layers"),
        ("directions=1 quantity=flipd sigma=0.1", "1 direction, at sigma 0.1"),
        ("noises=2 quantity=dispersion", "2 noises, by their spread"),
        ("cells_wide=3", "cells wide 3"),
    ],
)
def test_a_setting_is_told_in_words(name: str, words: str) -> None:
    assert setting_in_words(name) == words


@pytest.mark.parametrize("name", ALL)
def test_no_usual_setting_shows_a_name_of_the_code(name: str) -> None:
    kept = ("sigmas", "crops", "timesteps")  # of other lists each value is a reading of its own
    for asked in find(name).settings:
        setting = {
            key: value[0] if isinstance(value, list) and key not in kept else value for key, value in asked.items()
        }
        words = setting_in_words(setting_name(setting))
        assert not {*"_[]{}"} & {*words}, words


def test_every_question_of_the_first_page_has_words() -> None:
    asked = read_json(Path(__file__).parents[1] / "metrics/bench.json")["for_a_budget"]
    assert all(question(row["items"], row["contrast"]).endswith("?") for row in asked)
    assert {*KINDS, "control"} == {*OF_CASES}


def test_a_share_is_called_by_what_it_is_the_mean_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert statistic_in_words("share", "tables/localise/templates/slots.parquet") == "pixel AUROC"
    assert statistic_in_words("share", "tables/drawings/prompts.parquet") == "share"
    assert statistic_in_words("AUROC", "tables/localise/templates/slots.parquet") == "AUROC"
    shown = {name: claim.criterion.measure for name, claim in read_claims().items()}
    pixels = {name for name, claim in read_claims().items() if claim.criterion.says.startswith("Pixel AUROC")}
    assert pixels
    assert pixels == {name for name, measure in shown.items() if measure == "difference in pixel AUROC"}


def test_a_question_without_words_stands_as_it_is() -> None:
    assert question("pictures", "seen once against kept out") == "Which pictures did training see?"
    assert question("pictures", "x4 against kept out") == "x4 against kept out"
