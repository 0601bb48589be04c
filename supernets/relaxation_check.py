"""Whether the relaxed network of a space equals its subnetworks, and depends on every choice."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from search_spaces import Architecture, Candidate, RelaxedArchitecture, SearchSpace, Slicer, fill
from supernets.laws import RelaxationError

__all__ = ["check_relaxation"]

_BATCH = 4
_EQUAL, _INERT = 1e-4, 1e-5
Run = Callable[[RelaxedArchitecture, Mapping[str, Tensor], tuple[Any, ...]], Any]


def check_relaxation(space: SearchSpace, slicer: Slicer, run: Run, network: nn.Module) -> None:
    """Compare outputs at one-hot weights with those of subnetworks, and look for choices without a gradient.

    Random weights, inputs and a few architectures: smallest, random ones and, after a difference, each choice alone,
    so that the message can name the choice and the first module that differs.

    Args:
        space: the space.
        slicer: of its largest build.
        run: (relaxed, parameters of the largest build, inputs) -> outputs of the relaxed network.
        network: the module that ``run`` runs.

    Raises:
        RelaxationError: they differ, or a choice has no effect.
    """
    stored = _random_weights(space)
    generator = torch.Generator().manual_seed(0)
    inputs = _random_inputs(space, space.largest(), generator)
    for architecture in (space.smallest(), space.sample(generator), space.sample(generator)):
        if _difference(space, slicer, run, architecture, stored, inputs) > _EQUAL:
            _explain(space, slicer, run, network, stored, inputs, architecture)
    _refuse_inert(space, run, network, stored, inputs, generator)


def _random_weights(space: SearchSpace) -> dict[str, Tensor]:
    """Parameters of the largest build, none of them still zero or one."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        return {
            name: parameter.detach() + 0.1 * torch.randn_like(parameter)
            for name, parameter in space.superset().named_parameters()
        }


def _random_inputs(space: SearchSpace, architecture: Architecture, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs like the space's examples: normal numbers, or 0 and 1 for indices, unless the examples have others."""
    with torch.device("cpu"):
        examples = space.inputs(architecture, _BATCH)
    return tuple(
        torch.randn(example.shape, generator=generator, dtype=example.dtype)
        if example.is_floating_point()
        else example
        if bool(example.any())
        else torch.randint(2, example.shape, generator=generator, dtype=example.dtype)
        for example in examples
    )


def _subnetwork(
    space: SearchSpace, slicer: Slicer, architecture: Architecture, stored: Mapping[str, Tensor]
) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = space.build(architecture).eval()
    tensors = slicer.plan(module, architecture)(stored)
    buffers = {name: value for name, value in module.state_dict().items() if name not in tensors}
    for layer in fill(module, tensors | buffers).modules():
        if isinstance(layer, _NormBase):
            layer.train()
    return module


def _difference(
    space: SearchSpace,
    slicer: Slicer,
    run: Run,
    architecture: Architecture,
    stored: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
) -> float:
    """Largest difference of outputs, relative to the largest output; infinite where shapes differ."""
    given = _random_inputs(space, architecture, torch.Generator().manual_seed(1))
    if [x.shape for x in given] != [x.shape for x in inputs]:
        raise RelaxationError(
            f"inputs of {dict(architecture)} are {[tuple(x.shape) for x in given]} and those of the largest "
            f"architecture {[tuple(x.shape) for x in inputs]}; one pass serves all architectures only if they take the "
            "same inputs, let the module resize them itself"
        )
    with torch.no_grad():
        wanted = tree_leaves(_subnetwork(space, slicer, architecture, stored)(*inputs))
        found = tree_leaves(run(space.relax(architecture), stored, inputs))
    worst = 0.0
    for expected, actual in zip(wanted, found, strict=True):
        if expected.shape != actual.shape:
            return float("inf")
        scale = max(float(expected.abs().max()), 1e-6)
        worst = max(worst, float((expected - actual).abs().max()) / scale)
    return worst


def _explain(
    space: SearchSpace,
    slicer: Slicer,
    run: Run,
    network: nn.Module,
    stored: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    architecture: Architecture,
) -> None:
    """Raise, naming the choice and the first module that differ."""
    guilty: list[str] = []
    for choice in space.choices:
        values: dict[str, Candidate] = {c.name: c.candidates[-1] for c in space.choices}
        alone = space.architecture(values | {choice.name: choice.candidates[0]})
        if choice.size > 1 and _difference(space, slicer, run, alone, stored, inputs) > _EQUAL:
            guilty.append(choice.name)
            architecture = alone
    with torch.no_grad():
        module = _subnetwork(space, slicer, architecture, stored)
        wanted = _outputs(module, lambda: module(*inputs))
        found = _outputs(network, lambda: run(space.relax(architecture), stored, inputs))
    site = next((name for name, value in found.items() if name in wanted and not _same(wanted[name], value)), "")
    kind = type(network.get_submodule(site)).__name__
    raise RelaxationError(
        f"choices {guilty or list(architecture)} cannot be relaxed: with masks the largest build computes something "
        f"else than the subnetwork, first in module {site or '(the whole)'!r} ({kind}). It reads elastic features in a "
        "way that masks cannot follow, such as a softmax, mean or group over them or heads of elastic size; put a "
        "linear or convolutional layer in between, or fix these choices, or use SandwichRule"
    )


def _outputs(module: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """First output of every leaf module, in the order of execution."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, layer in module.named_modules():
        if any(layer.children()):
            continue

        def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            del module, args
            if isinstance(output, Tensor):
                outputs.setdefault(name, output)

        handles.append(layer.register_forward_hook(hook))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _same(wanted: Tensor, found: Tensor) -> bool:
    """Whether ``wanted`` is a prefix of ``found``."""
    if wanted.ndim != found.ndim or any(w > f for w, f in zip(wanted.shape, found.shape, strict=True)):
        return False
    part = found[tuple(slice(size) for size in wanted.shape)]
    return bool((wanted - part).abs().max() <= _EQUAL * wanted.abs().max().clamp_min(1e-6))


@contextmanager
def _exact_norms(network: nn.Module) -> Iterator[None]:
    """Let norms divide by the deviation itself: what is added to the variance leaves a trace of cancelled factors."""
    eps = {layer: layer.eps for layer in network.modules() if isinstance(layer, _NormBase)}
    try:
        for layer in eps:
            layer.eps = 1e-12
        yield
    finally:
        for layer, value in eps.items():
            layer.eps = value


@torch.enable_grad()
def _refuse_inert(
    space: SearchSpace,
    run: Run,
    network: nn.Module,
    stored: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    generator: torch.Generator,
) -> None:
    """Every choice must move the outputs where all candidates have weight."""
    weights = {
        choice.name: torch.randn(choice.size, generator=generator).softmax(0).requires_grad_()
        for choice in space.choices
        if choice.size > 1
    }
    if not weights:
        return
    fixed = {choice.name: torch.ones(1) for choice in space.choices if choice.size == 1}
    with _exact_norms(network):
        outputs = tree_leaves(run(RelaxedArchitecture(weights | fixed), stored, inputs))
    scale = max(float(output.detach().norm()) for output in outputs)
    total = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    assert isinstance(total, Tensor)  # noqa: S101 - a network has outputs
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    sizes = {
        name: 0.0 if gradient is None else float((gradient - gradient.mean()).abs().max())
        for name, gradient in zip(weights, gradients, strict=True)
    }
    inert = [name for name, size in sizes.items() if size <= _INERT * max(scale, *sizes.values())]
    if inert:
        raise RelaxationError(
            f"choices {inert} have no effect on the relaxed network: what they mask is only read in front of a norm in "
            "training mode, which cancels any factor on a channel, so they could never be learned; let a layer that "
            "mixes channels read these features, or fix the choices"
        )
