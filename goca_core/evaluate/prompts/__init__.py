"""Prompts of an evaluation: composed of class names, or captions."""
