"""Evaluation: label conventions, measures against the truth, baselines without learning, and reports."""
