"""Files of a tiny diffusion hypernetwork over the largest networks of a space."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from hypernets import DiffusionHyperNetwork, LabelledExamples, Target, save_hypernetwork
from hypernets.diffusion import FlowMatching, PCACodec
from search_spaces import SearchSpace

DATA = LabelledExamples(3, classes=2, embedding=4)


def write(space: SearchSpace, folder: Path, *, sets: int = 1) -> tuple[str, str]:
    """Return the paths of the hypernetwork and of a condition with ``sets`` data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = space.superset()
        hypernet = DiffusionHyperNetwork(
            Target.of(module), {"data": DATA}, codec=PCACodec(2), prior=FlowMatching((4,), steps=2)
        )
        zoo = {
            name: tensor.detach() + 0.1 * torch.randn(6, *tensor.shape) for name, tensor in module.named_parameters()
        }
        hypernet.learn_codec(zoo, generator=torch.Generator().manual_seed(0))
        examples = DATA.of(torch.randn(sets, 6, 3), (torch.arange(6) % 2).expand(sets, 6))
    save_file({"data": examples.contiguous()}, folder / "examples.safetensors")
    return str(save_hypernetwork(hypernet, folder / "hypernet.safetensors")), str(folder / "examples.safetensors")
