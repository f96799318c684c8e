"""Detecting memorised training data in diffusion models."""
