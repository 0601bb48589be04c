"""Sampling weights from a zoo of trained networks: codecs, priors, alignment, and the hypernetwork made of them."""

from hypernets.diffusion.alignment import Couplings, align, chain_couplings, permute
from hypernets.diffusion.assessment import Assessment, assess
from hypernets.diffusion.codecs import PCACodec, WeightCodec
from hypernets.diffusion.contrast import ContrastiveAlignment
from hypernets.diffusion.denoising import Denoising
from hypernets.diffusion.generator import DiffusionHyperNetwork
from hypernets.diffusion.priors import FlowMatching, Prior
from hypernets.diffusion.training import LatentObjective, fit_diffusion
from hypernets.diffusion.vae import VAECodec
from hypernets.diffusion.zoo import ModelZoo, ZooFileError, load_zoo

__all__ = [
    "Assessment",
    "ContrastiveAlignment",
    "Couplings",
    "Denoising",
    "DiffusionHyperNetwork",
    "FlowMatching",
    "LatentObjective",
    "ModelZoo",
    "PCACodec",
    "Prior",
    "VAECodec",
    "WeightCodec",
    "ZooFileError",
    "align",
    "assess",
    "chain_couplings",
    "fit_diffusion",
    "load_zoo",
    "permute",
]
