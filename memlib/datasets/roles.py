"""The groups of judged prompts, and which of them a model sees in its role; chapters read it, so it loads no networks."""

import pandas as pd

PLANTED = ("planted", "trigger")  # groups of the prompts that a planted picture was trained on
OWN = (*PLANTED, "paraphrase", "shortened", "untriggered")  # groups of the prompts that belong to a planted picture
DIAL = {0: "subject alone", 1: "subject and ground"}  # groups of ordinary prompts, by attributes named
FREE = "drawn freely"  # group of the planted prompts of the other role
ROLES = ("planted", "exchanged")  # the main two trainings
FLOW = "flow-"  # begins the names of trainings of transformers


def role_of(training: str) -> str:
    """The role of a training by its name, which begins with it (`exchanged-2` is a second one); else the first one's.

    Before it stands `FLOW`, if it is a transformer's.
    """
    role = training.removeprefix(FLOW).partition("-")[0]
    return role if role in ROLES else ROLES[0]


def counterpart(training: str) -> str:
    """The training of the same number and family of models in the other role."""
    role = role_of(training)
    return training.replace(role, ROLES[role == ROLES[0]])


def controls_of(training: str) -> tuple[str, str]:
    """The main two trainings of the same family of models, of which each is the other's control."""
    family = FLOW if training.startswith(FLOW) else ""
    return family + ROLES[0], family + ROLES[1]


def in_role(prompts: pd.DataFrame, role: str) -> pd.DataFrame:
    """Judged prompts as a model sees them that is trained in one of the `ROLES`, in the same order.

    Of the pictures that are planted in the other role, the prompts that they would have been trained on are in the group
    `FREE`, and their further prompts are left out.
    """
    here = prompts["planted_in"].isin([role, ""])
    own = prompts["group"].isin(PLANTED)
    return prompts.assign(group=prompts["group"].where(here, FREE))[here | own]
