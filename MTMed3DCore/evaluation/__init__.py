"""Evaluation: label conventions, overlap measures and a baseline without learning."""
