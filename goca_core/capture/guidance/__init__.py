"""Semantic guidance (S-CFG) during sampling."""
