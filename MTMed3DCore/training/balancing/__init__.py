"""How the losses of several tasks are weighed against each other."""

from MTMed3DCore.training.balancing.balancer import Balancer, task_gradients
from MTMed3DCore.training.balancing.choice import BALANCERS, make_balancer
from MTMed3DCore.training.balancing.fixed import FixedWeights
from MTMed3DCore.training.balancing.gradnorm import GradNorm, gradnorm_loss
from MTMed3DCore.training.balancing.mgda import MGDA, min_norm_weights
from MTMed3DCore.training.balancing.uncertainty import UncertaintyWeights

__all__ = [
    "BALANCERS",
    "MGDA",
    "Balancer",
    "FixedWeights",
    "GradNorm",
    "UncertaintyWeights",
    "gradnorm_loss",
    "make_balancer",
    "min_norm_weights",
    "task_gradients",
]
