"""Semantic guidance while a sampler runs."""
