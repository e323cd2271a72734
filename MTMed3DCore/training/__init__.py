"""Training: anchors, losses, task balance and the loop of the starter."""
