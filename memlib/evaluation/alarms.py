"""Which samples a guard stops, by what it reads of the steps of sampling, with a stated rate of false alarms.

A reading is the magnitude |D_c - D_u| over some first or last steps. Its threshold is that of ordinary prompts alone.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from memlib.evaluation.discovery import conformal_p_values
from memlib.evaluation.intervals import mean, proportion

FIRST, LAST = (1, 2, 5, 10), (1, 5)  # steps
ONE = "first step"


def windows(steps: int) -> dict[str, slice]:
    """The steps of a sampling of so many that a guard may read: the first ones, all, and the last ones."""
    first = {ONE if count == 1 else f"first {count} steps": slice(0, count) for count in FIRST if count < steps}
    last = {
        "last step" if count == 1 else f"last {count} steps": slice(-count, None) for count in LAST if count < steps
    }
    return first | {"all steps": slice(0, steps)} | last


def readings(magnitudes: NDArray[np.float64], ordinary: NDArray[np.float64]) -> pd.DataFrame:
    """Mean magnitude of samples [N, K] over each of the `windows`, each step in units of its median over ordinary ones [M, K]."""
    relative = np.asarray(magnitudes) / np.median(ordinary, axis=0)
    return pd.DataFrame({name: relative[:, part].mean(axis=1) for name, part in windows(relative.shape[1]).items()})


def stopped(values: ArrayLike, ordinary: ArrayLike, false_alarms: float) -> NDArray[np.bool_]:
    """Which samples [N] exceed the threshold that a further ordinary one [M] exceeds with a chance of at most `false_alarms`.

    The same as the threshold of `memlib.mitigation.guard`: a conformal p-value of at most the rate.
    """
    return conformal_p_values(values, ordinary) <= false_alarms


def discriminant(
    copies: NDArray[np.float64], ordinary: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A reading of samples [N, K] that weighs all steps together: Fisher's linear discriminant of the logarithms.

    Fitted to the magnitudes of copies [M, K] and of ordinary samples [L, K], with the shrinkage of Ledoit and Wolf.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    labels = np.repeat([1, 0], [len(copies), len(ordinary)])
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    fitted.fit(np.log(np.r_[copies, ordinary]), labels)
    return lambda magnitudes: fitted.decision_function(np.log(magnitudes))


def best_window(shares: Mapping[str, pd.DataFrame], trainings: Collection[str]) -> str:
    """The window that stops the largest share of copies in these trainings, the earlier one of equals.

    shares: by training, a row a prompt, a column a window.
    """
    return str(pd.concat([shares[name] for name in trainings]).mean().idxmax())


def redirections(samples: pd.DataFrame) -> pd.DataFrame:
    """What becomes of the samples that a guard warns of, a row an action: `none` first, then each way of drawing them again.

    samples: a row a sample and action, with id, noise, action, flagged, refused, copies_own and agreement. copies: the share of
    the samples that were warned of which is drawn and is a copy. change: of the agreement with the prompt against the same
    sample drawn without a guard, the mean over samples that are not refused (None for fewer than two of them).
    """
    flagged = samples[samples["flagged"]].set_index(["id", "noise"])
    before = flagged.loc[flagged["action"] == "none", "agreement"]
    rows = []
    for action, own in flagged.groupby("action", sort=False):
        drawn = own[~own["refused"]]
        change = (drawn["agreement"] - before.loc[drawn.index]).to_numpy()
        rows.append(
            {
                "action": action,
                "warned of": len(own),
                "refused": int(own["refused"].sum()),
                "copies": proportion(int(drawn["copies_own"].sum()), len(own)),
                "change": mean(change) if len(change) > 1 else None,
            }
        )
    return pd.DataFrame(rows, columns=["action", "warned of", "refused", "copies", "change"])
