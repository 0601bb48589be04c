"""Running a subnetwork on inputs of clients, several requests in one batch."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.service.problems import RefusedError
from nas.service.served import Served
from nas.service.work import Workers
from search_spaces import Architecture

__all__ = ["Batcher", "read_inputs"]

Inputs = tuple[Tensor, ...]


def read_inputs(served: Served, architecture: Architecture, given: Sequence[Any]) -> Inputs:
    """Turn nested lists into tensors of the shapes that the network takes.

    Raises:
        RefusedError: number, shape or kind of the inputs is another, or a value is not finite (422).
    """
    with torch.device("cpu"):
        examples = served.objective.examples(architecture)
    if len(given) != len(examples):
        raise _bad(f"the network takes {len(examples)} inputs, got {len(given)}")
    pairs = zip(given, examples, strict=True)
    made = tuple(_tensor(value, example, position) for position, (value, example) in enumerate(pairs))
    if len({len(tensor) for tensor in made}) != 1:
        raise _bad(f"all inputs must have the same number of rows, got {[len(tensor) for tensor in made]}")
    return made


def _bad(message: str) -> RefusedError:
    return RefusedError(422, "invalid_inputs", message)


def _tensor(value: Any, example: Tensor, position: int) -> Tensor:
    shape = ["batch", *example.shape[1:]]
    kind = "finite numbers" if example.is_floating_point() else "integers"
    flat: list[Any] = []
    found = _measure(value, example.dim(), flat)
    if found is None or found[0] < 1 or found[1:] != tuple(example.shape[1:]):
        raise _bad(f"inputs[{position}] must be a nested list of shape {shape} with at least one row of {kind}")
    allowed = (int, float) if example.is_floating_point() else (int,)
    if not all(isinstance(item, allowed) and not isinstance(item, bool) for item in flat):
        raise _bad(f"inputs[{position}] must hold {kind} only")
    try:
        tensor = torch.tensor(flat, dtype=example.dtype, device="cpu").reshape(found)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise _bad(f"inputs[{position}] must hold {kind} that fit {example.dtype}: {error}") from error
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise _bad(f"inputs[{position}] must hold {kind} only")
    return tensor


def _measure(value: Any, depth: int, flat: list[Any]) -> tuple[int, ...] | None:
    """Append the leaves of a nested list to ``flat`` and return its shape, or ``None`` where it is ragged."""
    if depth == 0:
        flat.append(value)
        return ()
    if not isinstance(value, list):
        return None
    shapes = [_measure(item, depth - 1, flat) for item in value]
    if any(shape != shapes[0] for shape in shapes):
        return None
    inner = shapes[0] if shapes else ()
    return None if inner is None else (len(value), *inner)


@dataclass(frozen=True)
class _Waiting:
    inputs: Inputs
    answer: "asyncio.Future[Any]"


@final
class Batcher:
    """Joins requests for one subnetwork that come within a few milliseconds into one forward pass.

    Args:
        workers: compute.
        seconds: that the first request of a batch waits for others.
        rows: of one forward pass at most, unless a single request has more.
    """

    def __init__(self, workers: Workers, *, seconds: float = 0.004, rows: int = 256) -> None:
        self.workers = workers
        self.seconds = seconds
        self.rows = rows
        self.batches = 0
        self._waiting: dict[Hashable, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, served: Served, architecture: Architecture, inputs: Inputs) -> Any:
        """Return the outputs for ``inputs`` as nested lists.

        Raises:
            RefusedError: the network refuses the inputs or gives no finite outputs (422), or see :meth:`Workers.run`.
        """
        key = (served.revision, architecture)
        mine = _Waiting(inputs, asyncio.get_running_loop().create_future())
        if key in self._waiting:
            self._waiting[key].append(mine)
        else:
            self._waiting[key] = [mine]
            task = asyncio.create_task(self._flush(key, lambda: served.memory.module(architecture)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await mine.answer

    async def _flush(self, key: Hashable, module: Callable[[], nn.Module]) -> None:
        await asyncio.sleep(self.seconds)
        waiting = self._waiting.pop(key)
        while waiting:
            batch = [waiting.pop(0)]
            while waiting and sum(len(item.inputs[0]) for item in (*batch, waiting[0])) <= self.rows:
                batch.append(waiting.pop(0))
            self.batches += 1
            try:
                answers = await self.workers.run(lambda batch=batch: _run(module(), [item.inputs for item in batch]))  # type: ignore[misc]
            except Exception as error:
                answers = [error] * len(batch)
            for item, answer in zip(batch, answers, strict=True):
                if item.answer.done():  # the client has gone
                    continue
                if isinstance(answer, Exception):
                    item.answer.set_exception(answer)
                else:
                    item.answer.set_result(answer)


def _run(module: nn.Module, requests: Sequence[Inputs]) -> list[Any]:
    """Return the answer, or the refusal, of every request of a batch."""
    rows = [len(inputs[0]) for inputs in requests]
    joined = tuple(torch.cat(parts) for parts in zip(*requests, strict=True))
    try:
        with torch.inference_mode():
            leaves, layout = tree_flatten(module(*joined))
    except Exception as error:  # whatever a network raises on values it does not take, e.g. a token out of range
        if len(requests) > 1:
            return [answer for inputs in requests for answer in _run(module, [inputs])]
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return [_bad(f"the network refuses these inputs: {reason}")]
    if not all(isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == sum(rows) for leaf in leaves):
        return [RefusedError(422, "no_rows", "the outputs of this network have no batch dimension first")] * len(
            requests
        )
    split = [leaf.split(rows) for leaf in leaves]
    return [_listed([parts[index] for parts in split], layout) for index in range(len(requests))]


def _listed(leaves: Sequence[Tensor], layout: Any) -> Any:
    lists = [leaf.tolist() for leaf in leaves]
    if not all(leaf.isfinite().all() for leaf in leaves if leaf.is_floating_point()):
        return _bad("the outputs for these inputs are not finite; scale the inputs as the training data were")
    return tree_unflatten(lists, layout)
