"""Memorisation in diffusion models: noise prediction over sigma, and the detectors that are built on it."""
