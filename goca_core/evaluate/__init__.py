"""Evaluation of masks by the paper's protocol: data sets, prompts, methods, counts and reports."""
