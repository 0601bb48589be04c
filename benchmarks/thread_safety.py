"""Eight threads ask one supernet for different subnetworks at once: is every answer right?

Every request binds or extracts an architecture drawn for it alone, runs it, and is compared to the bit with the answer
of a single thread. The last row is a control that is expected to fail: requests for a single architecture through one
module that all threads share and that has its tensors swapped in and out for each call.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks import Result
from search_spaces import Architecture, ConvNetSpace, Stage
from supernets import Classification, Supernet

THREADS = 8
Answer = Callable[[Architecture], Tensor]


def serve(answer: Answer, requests: Sequence[Sequence[tuple[Architecture, Tensor]]]) -> tuple[int, int]:
    """Wrong answers and exceptions when every thread works off its own list of (architecture, right answer)."""
    start = threading.Barrier(len(requests))

    def work(mine: Sequence[tuple[Architecture, Tensor]]) -> tuple[int, int]:
        wrong = raised = 0
        start.wait()
        with torch.no_grad():
            for architecture, expected in mine:
                try:
                    wrong += not torch.equal(answer(architecture), expected)
                except Exception:  # the control fails in any way it likes
                    raised += 1
        return wrong, raised

    with ThreadPoolExecutor(len(requests)) as pool:
        counts = list(pool.map(work, requests))
    return sum(wrong for wrong, _ in counts), sum(raised for _, raised in counts)


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    each = 50 if quick else 500
    space = ConvNetSpace(
        [
            Stage((8, 16), (1, 2), (3, 5), (2, 3), stride=2, squeeze_excite=True),
            Stage((16, 24), (1, 2, 3), (3, 5), (2, 3), stride=2, squeeze_excite=True),
        ],
        10,
        resolutions=(12, 16),
        per_block=True,
    )
    supernet = Supernet(space, Classification(10)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    architectures = supernet.sample(THREADS * each, generator=generator)
    with torch.no_grad():
        right = {a: supernet.extract(a)(images) for a in architectures}
    requests = [[(a, right[a]) for a in architectures[thread::THREADS]] for thread in range(THREADS)]
    shared = space.build(space.middle()).eval()
    middle = [[(space.middle(), supernet.extract(space.middle())(images).detach())] * each for _ in range(THREADS)]

    def swapped(architecture: Architecture) -> Tensor:
        outputs: Tensor = functional_call(shared, supernet.source(architecture), (images,))
        return outputs

    counts = {
        "bind": serve(lambda a: supernet.bind(a)(images), requests),
        "extract": serve(lambda a: supernet.extract(a)(images), requests),
        "forward": serve(lambda a: supernet(a, images), requests),
        "one shared module (control)": serve(swapped, middle),
    }
    rows = tuple(
        {"answer by": name, "threads": THREADS, "requests": THREADS * each, "wrong": wrong, "exceptions": raised}
        for name, (wrong, raised) in counts.items()
    )
    ours = [counts[name] for name in ("bind", "extract", "forward")]
    wrong, raised = sum(w for w, _ in ours), sum(r for _, r in ours)
    return Result(
        rows,
        f"{wrong} wrong answers and {raised} exceptions in {3 * THREADS * each} requests from {THREADS} threads "
        "(asked: 0 and 0)",
        wrong == raised == 0,
    )
