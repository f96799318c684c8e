"""What is done to the words of a prompt; it imports nothing of memlib."""

import numpy as np


def put_in(prompt: str, word: str, rng: np.random.Generator) -> str:
    """A prompt with a word put in at a random place ("" changes nothing)."""
    words = prompt.split()
    words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(filter(None, words))
