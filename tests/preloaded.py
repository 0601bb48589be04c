"""What every program of the tests imports sooner or later; imported once, by the process that they are forks of."""

import mlflow  # noqa: F401
import torch

import nas.cli  # noqa: F401

torch.set_num_threads(1)
