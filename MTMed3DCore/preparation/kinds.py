"""The normalisations that a model's settings may name; apart, so that reading settings loads no torch."""

NORMALISATIONS = ("zscore_brain", "zscore_nonzero")
"""See `MTMed3DCore.preparation.normalise_tensor` for what each does."""
