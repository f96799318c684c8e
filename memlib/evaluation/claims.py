"""How a claim of a paper comes out: a verdict from an estimate, and the entry that a chapter writes."""

from typing import Any, Literal

from memlib.evaluation.intervals import Estimate, WelchTest

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


def judge(estimate: Estimate, threshold: float, extra_condition: bool = True) -> Verdict:
    """Reproduced if the interval lies above the threshold and the condition holds, not if it lies below, else inconclusive."""
    if estimate.high < threshold:
        return "not reproduced"
    return "reproduced" if estimate.low > threshold and extra_condition else "inconclusive"


def judge_separation(auroc: Estimate, test: WelchTest) -> Verdict:
    """Judge an AUROC against 0.5; reproduced only if Welch's test of the same groups is significant at 1 % as well."""
    return judge(auroc, 0.5, extra_condition=test.t > 0 and test.p_value < 0.01)


def settled(claim_id: str, estimate: Estimate, verdict: Verdict, baseline: Estimate) -> dict[str, Any]:
    """A chapter's entry, in its metrics file, for a claim that it has settled; `baseline` is what a plain detector reaches."""
    return {"id": claim_id, "verdict": verdict} | _rounded("", estimate) | _rounded("baseline_", baseline)


def _rounded(prefix: str, estimate: Estimate) -> dict[str, Any]:
    value, low, high = (round(number, 4) for number in estimate)
    return {f"{prefix}value": value, f"{prefix}ci95": [low, high]}
