"""Cheap evaluations of many architectures, dear ones of the best of them."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import lightning as L

from nas.objectives import Objective
from nas.seeds import FinishedStudy
from nas.settings import SearchSettings
from supernets import Supernet

__all__ = ["stages"]


def stages(settings: SearchSettings) -> list[SearchSettings]:
    """Return the searches that ``settings`` describes, one after another: its rungs, the cheapest first, and itself.

    Rung ``i`` is a study of its own, ``NAME.rung{i}``, at its fidelity, so that values in one study compare; it
    evaluates ``eta`` times as many architectures as the next one, which begins with the best of it.
    """
    rungs = settings.rungs
    if rungs is None:
        return [settings]
    count = len(rungs.fidelities)
    found: list[SearchSettings] = []
    for place in range(count + 1):
        trials = math.ceil(settings.trials * rungs.eta ** (count - place) - 1e-9)
        stage = replace(settings, trials=trials, rungs=None)
        if place < count:
            make = functools.partial(_at, settings.objective, rungs.fidelities[place])
            stage = replace(stage, study=f"{settings.study}.rung{place + 1}", objective=make)
        if found:
            best = FinishedStudy(found[-1].study, settings.storage, count=trials)
            stage = replace(stage, seeds=[best], warm_start=())
        found.append(stage)
    return found


def _at(
    make: Callable[[Supernet, L.LightningDataModule], Objective],
    fidelity: float,
    supernet: Supernet,
    data: L.LightningDataModule,
) -> Objective:
    return make(supernet, data).at(fidelity)
