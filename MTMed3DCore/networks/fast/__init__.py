"""The network's own function computed with less work: the same modules and weights, rearranged data flow."""

from MTMed3DCore.networks.fast.swin import encode

__all__ = ["encode"]
