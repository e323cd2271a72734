"""Whether a study is of the kind that the models were made for: a pre-operative glioma MR study of an adult.

Measured statistics with the ranges that synthetic studies keep to, and the network's own doubt. Every check can be
wrong either way; it only ever warns. See docs/out-of-domain.md for what each says of real and of wrong studies.
"""
