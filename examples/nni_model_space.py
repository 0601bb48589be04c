"""Train and search a model space that was written for NNI, without NNI's strategies.

Run it from the root of the project: ``python -m examples.nni_model_space``; half a minute on two cores.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import torch

from examples.my_nni_model import DigitsModelSpace
from nas import DigitsData, NNIController, NNISpace, Parameters, SearchSettings, open_search
from search_spaces import Architecture
from supernets import Classification, Supernet


def main(*, epochs: int = 20, trials: int = 40, out: str | Path = "nni_study") -> list[tuple[Architecture, float]]:
    """Train a supernet of the model space, search it, and return the Pareto front with accuracies.

    Args:
        epochs: of the supernet's training.
        trials: evaluations of the search.
        out: where the study is kept; running it again continues the search.
    """
    space = NNISpace(DigitsModelSpace, input_shape=(1, 8, 8))
    print(f"{space.size()} architectures, {len(space.choices)} choices")

    supernet = Supernet(space, Classification(10), optimizer=functools.partial(torch.optim.AdamW, lr=5e-3))
    data = DigitsData()
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
        study="nni-model-space",
        trials=trials,
        costs=[Parameters],
        controller=functools.partial(NNIController, tuner="tpe"),
        storage=str(Path(out).with_suffix(".journal")),
    )
    with open_search(supernet, data, settings, runs=str(Path(out).with_suffix(".runs"))) as search:
        found = search.run(trials)
    front = []
    for trial in found.front:
        architecture = space.architecture(trial.architecture)
        print(
            f"{trial.value('accuracy'):7.2%} {trial.value('params'):8,.0f} parameters  {space.sample_of(architecture)}"
        )
        front.append((architecture, trial.value("accuracy")))
    return front


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", default="nni_study")
    main(**vars(parser.parse_args()))
