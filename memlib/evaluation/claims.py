"""How a claim of a paper comes out: a verdict from what was measured."""

from collections.abc import Mapping
from typing import Any, Literal

from memlib.evaluation.intervals import Estimate
from memlib.evaluation.measured import Difference, Measured, detectable, p_value, settleable

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "underpowered"]


def judge(estimate: Estimate, threshold: float, decidable: bool = True) -> Verdict:
    """Reproduced if the whole interval lies above the threshold, not if it lies below; else inconclusive or underpowered.

    decidable: whether any outcome on so many items could have lain above.
    """
    if estimate.low > threshold:
        return "reproduced"
    if estimate.high < threshold:
        return "not reproduced"
    return "inconclusive" if decidable else "underpowered"


def after_correction(verdict: Verdict, p: float) -> Verdict:
    """The verdict that remains when the p-value is one that is corrected for the other claims."""
    return "inconclusive" if verdict in ("reproduced", "not reproduced") and p >= 0.05 else verdict


def settle(found: Measured | Difference, threshold: float) -> dict[str, Any]:
    """The verdict on what was found, with its value, 95 % interval, p-value and the smallest effect that was detectable."""
    estimate, effect = found.interval(), detectable(found, threshold)
    return {
        **rounded("", estimate),
        "verdict": judge(estimate, threshold, settleable(found, threshold)),
        "p_value": float(f"{p_value(found, threshold):.3g}"),
        "detectable": None if effect is None else round(effect, 3),
    }


def rounded(prefix: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as the entries PREFIXvalue and PREFIXci95 of a metrics file."""
    value, low, high = (round(number, 4) for number in estimate)
    return {f"{prefix}value": value, f"{prefix}ci95": [low, high]}


def estimate_in(row: Mapping[str, Any], prefix: str = "") -> Estimate:
    """The estimate that `rounded` has put into a row under this prefix."""
    return Estimate(row[f"{prefix}value"], *row[f"{prefix}ci95"])
