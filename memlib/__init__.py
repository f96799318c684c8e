"""Memorisation in diffusion models: noise prediction over sigma, and the detectors that three papers build on it."""

import os

# Importing a pipeline of diffusers makes transformers report that image processors, which nothing here uses, fall back.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
