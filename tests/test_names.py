"""Detectors and settings in words."""

import pytest

from memlib.detectors import ALL
from memlib.evaluation.bench import ADAPTIVE, BASELINES, BLIND, LEARNED, RANKS
from memlib.study import names


def test_every_detector_has_a_name_of_its_own() -> None:
    assert set(names.DETECTORS) == {*ALL, RANKS, ADAPTIVE, LEARNED}
    assert len(set(names.DETECTORS.values())) == len(names.DETECTORS)
    assert not [name for name in names.DETECTORS.values() if "_" in name]
    assert names.detector("gsa, learned") == names.detector("gsa")
    assert names.detector("mine") == "mine"


def test_remarks_say_who_knows_more_and_who_less() -> None:
    assert names.remark("loss", BASELINES["pictures"]) == "plain baseline"
    assert names.remark("loss") == ""
    assert {names.remark(name) for name in BLIND} == {"never looks at the model"}
    assert names.remark("gsa, learned") == names.remark(LEARNED) == "fitted to labels"
    assert names.remark("growth") == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ""),
        ("fitted=True", "all settings together"),
        ("draws=1 prompt=True sigma=0.667", "noise level 0.667, 1 draw of noise, under the prompt"),
        (
            "directions=2 rate_at=0.1884 sigma_min=0.02 steps=4",
            "from noise level 0.02, rate at noise level 0.188, 2 random directions, 4 steps",
        ),
        ("layer=up_blocks.0.conv1.bias sigmas=[0.1,0.2]", "noise levels 0.1, 0.2, one layer of the network"),
        ("layer=2", "one layer of the network"),
        ("layer=all timesteps=[0,10,20]", "3 timesteps, all layers"),
        ("sigma=inf step=0 noises=4 quantity=edges", "noise level ∞, reading: edges, step 1 of sampling, 4 noises"),
        (
            "guidance=3 sampling_steps=25 sigma=9.33808 step=1 steps=4",
            "noise level 9.34, guidance 3, step 2 of sampling",
        ),
        ("directions=1 quantity=flipd sigma=0.2", "noise level 0.2, 1 random direction"),
    ],
)
def test_a_setting_in_words(name: str, words: str) -> None:
    assert names.setting(name) == words
