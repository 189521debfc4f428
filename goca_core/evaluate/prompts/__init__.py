"""Prompts of an evaluation: made from class names or from captions."""
