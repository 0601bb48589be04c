"""Sampling weights from a zoo of trained networks: codecs, priors, alignment, and the hypernetwork made of them."""

from hypernets.diffusion.alignment import Couplings, align, chain_couplings, permute
from hypernets.diffusion.codecs import PCACodec, WeightCodec
from hypernets.diffusion.generator import DiffusionHyperNetwork
from hypernets.diffusion.priors import FlowMatching, Prior
from hypernets.diffusion.training import fit_diffusion

__all__ = [
    "Couplings",
    "DiffusionHyperNetwork",
    "FlowMatching",
    "PCACodec",
    "Prior",
    "WeightCodec",
    "align",
    "chain_couplings",
    "fit_diffusion",
    "permute",
]
