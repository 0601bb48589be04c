"""A tiny experiment in a folder of its own, run through the real command line."""

from pathlib import Path

CONFIG = """
seed_everything: 0
trainer: {accelerator: cpu, max_epochs: 2}
model:
  class_path: supernets.Supernet
  init_args:
    space:
      class_path: search_spaces.MLPSpace
      init_args: {in_features: 64, num_classes: 10, widths: [8, 16, 32], depths: [1, 2]}
    task:
      class_path: supernets.Classification
      init_args: {num_classes: 10}
    rule: {class_path: supernets.SandwichRule, init_args: {n_random: 1}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
    calibration: 2
data:
  class_path: nas.data.DigitsData
search:
  study: small
  trials: 6
  objectives: [accuracy, params]
  controller: {class_path: nas.RandomController}
"""


def write_config(folder: Path, *replacements: tuple[str, str], name: str = "small.yaml") -> str:
    """Write the configuration with some text replaced, each of which must occur."""
    text = CONFIG
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / name
    path.write_text(text)
    return str(path)
