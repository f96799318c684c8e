"""What a caption of a drawing can name beside its subject: the colour of the ground and the size."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

GROUNDS = {  # red, green and blue of the middle tone
    "red": (0.92, 0.35, 0.35),
    "orange": (0.96, 0.66, 0.30),
    "yellow": (0.96, 0.92, 0.42),
    "green": (0.45, 0.80, 0.45),
    "blue": (0.40, 0.58, 0.95),
    "purple": (0.66, 0.42, 0.88),
    "pink": (0.98, 0.70, 0.82),
    "grey": (0.66, 0.66, 0.66),
}
SIZES = {"small": (0.45, 0.55), "big": (0.68, 0.78)}  # share of the side
ATTRIBUTES = {"ground": tuple(GROUNDS), "size": tuple(SIZES)}

WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}

WORDINGS: tuple[dict[str, str], ...] = (  # what is not named is left out
    {"size": "a {}", "subject": "{}", "ground": "on a {} ground"},
    {"subject": "picture of one {}", "size": "drawn {}", "ground": "before {}"},
    {"ground": "{} background,", "size": "{}", "subject": "{}"},
    {"size": "the {}", "subject": "{}", "ground": "with {} behind"},
)


def describe(look: Mapping[str, str], named: Collection[str], wording: int, rng: np.random.Generator) -> str:
    """A caption in one of the wordings, which names the subject of a drawing and some attributes, each in one of its words.

    look: what the drawing shows, by the names `subject`, `ground` and `size`.
    """
    parts = []
    for name, phrase in WORDINGS[wording].items():
        if name == "subject" or name in named:
            words = WORDS.get(look[name], (look[name],))
            parts.append(phrase.format(words[rng.integers(len(words))]))
    return " ".join(parts)


def random_names(rng: np.random.Generator) -> list[str]:
    """Some of the attributes, each with a chance of one half."""
    return [name for name in ATTRIBUTES if rng.random() < 0.5]


def caption_words() -> set[str]:
    """All words that captions hold beside their subject."""
    phrases = [phrase for wording in WORDINGS for phrase in wording.values()]
    names = [word for names in ATTRIBUTES.values() for name in names for word in WORDS.get(name, (name,))]
    return {word.strip(",:") for phrase in [*phrases, *names] for word in phrase.split()} - {"{}", ""}


def named_in_a_word(captions: Sequence[str], longest: int = 8) -> list[int]:
    """Which captions are one short word of small letters that means nothing else in the captions of drawings."""
    taken = caption_words()
    return [
        number
        for number, word in enumerate(captions)
        if word.isascii() and word.isalpha() and word.islower() and len(word) <= longest and word not in taken
    ]
