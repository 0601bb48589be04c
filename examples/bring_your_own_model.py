"""Search the sizes of a model of your own: train once, search, take the best small one away.

Run it from the root of the project: ``python -m examples.bring_your_own_model``; about a minute on two cores.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import torch

from examples.my_model import MyNet
from nas import DigitsData, EvolutionController, MACs, Parameters, SearchSettings, open_search
from nas.objectives import WeightSharing
from search_spaces import FactorySpace
from supernets import Classification, Supernet
from supernets.export import Exported, export


def main(
    *, epochs: int = 30, trials: int = 40, out: str | Path = "my_subnetwork", max_params: float = 8000
) -> Exported:
    """Train, search and export; return what was written.

    Args:
        epochs: of the supernet's training.
        trials: evaluations of the search.
        out: folder of the export.
        max_params: hard limit on the number of parameters.
    """
    space = FactorySpace(
        MyNet,
        {"width": [8, 16, 32], "hidden.length": [1, 2, 3], "hidden.*": [8, 16, 32, 48], "kernel": [3, 5]},
        input_shape=(1, 8, 8),
    )
    print(f"{space.size():,} architectures of {MyNet.__name__}")

    supernet = Supernet(space, Classification(10), optimizer=functools.partial(torch.optim.AdamW, lr=5e-3))
    data = DigitsData(crop_padding=1)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    trainer.fit(supernet, data)
    supernet.eval()

    settings = SearchSettings(
        study="my-model",
        trials=trials,
        costs=[Parameters, MACs],
        limits={"max_params": max_params},
        controller=functools.partial(EvolutionController, population_size=12),
        storage=str(Path(out).with_suffix(".journal")),
    )
    with open_search(supernet, data, settings, runs=str(Path(out).with_suffix(".runs"))) as search:
        found = search.run(trials)
    for trial in found.front:
        print(f"{trial.value('accuracy'):7.2%} {trial.value('params'):8,.0f} parameters  {dict(trial.architecture)}")

    best = max(found.front, key=lambda trial: trial.value("accuracy"))
    architecture = space.architecture(best.architecture)
    module = WeightSharing(supernet, data).module(architecture, owned=True)  # calibrated, of class MyNet
    written = export(
        module,
        space.inputs(architecture, batch_size=2),
        out,
        formats=("safetensors",),
        manifest={"architecture": dict(architecture), "arguments": space.arguments(architecture)},
        overwrite=True,
    )
    print(f"wrote {written.folder}: {written.parameters:,} parameters; load them into MyNet(**arguments)")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", default="my_subnetwork")
    parser.add_argument("--max_params", type=float, default=8000)
    main(**vars(parser.parse_args()))
