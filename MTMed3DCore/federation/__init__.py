"""Training one network at several sites whose studies stay where they are.

`aggregation`, `symmetry` and `matching` are pure functions on named tensors; `site` wraps the project's trainer;
`coordinator` is the server's side of a round; `simulation` drives both in one process, `flower_app` over a network.
"""

from __future__ import annotations
