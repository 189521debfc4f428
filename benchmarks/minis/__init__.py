"""Trained miniatures of model families, and the scenes with known masks on which their masks are judged.

A miniature is a small text-to-image model in ComfyUI's own network class, with the real tokenizer of its family and a
small text encoder. Its weights are not part of this repository.
"""
