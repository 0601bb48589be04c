"""What does not fit together is said before training: a task and its space, data and the space."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from search_spaces import (
    CellSpace,
    DARTSSpace,
    FactorySpace,
    GraphSpace,
    MLPSpace,
    QuantizedSpace,
    SearchSpace,
    Stack,
    TransformerSpace,
    TranslationSpace,
)
from supernets import (
    Classification,
    LanguageModelling,
    NodeClassification,
    QuantizedWeights,
    SharedWeights,
    Supernet,
    Task,
    Translation,
)
from supernets.mismatch import check_data, inputs_of

Fit = Callable[..., L.Trainer]


def language(num_classes: int | None = None) -> TransformerSpace:
    return TransformerSpace(
        8, 4, widths=(4, 8), depths=(1,), heads=(1,), ffn_ratios=(1,), head_dim=4, num_classes=num_classes
    )


def translation(**options: Any) -> TranslationSpace:
    stack = Stack((4, 8), (1,), (1,), (1,))
    decoder = Stack((4,), (1,), (1,), (1,), cross_heads=(1,))
    return TranslationSpace(12, 8, encoder=stack, decoder=decoder, head_dim=4, **options)


@pytest.mark.parametrize(
    ("space", "task", "message"),
    [
        (MLPSpace(6, 4), Classification(3), r"num_classes must be that of the space, got 3 and MLPSpace.num_classes=4"),
        (language(), Classification(4), r"got 4 and TransformerSpace.num_classes=None"),
        (language(5), LanguageModelling(), r"TransformerSpace tell 5 classes apart; .*num_classes: null"),
        (translation(), Translation(max_length=9), r"max_length must be at most TranslationSpace.context=8, .* got 9"),
        (translation(padding=5), Translation(max_length=8), r"padding must be .* got 0 and TranslationSpace.padding=5"),
        (translation(), Translation(end=12, max_length=8), r"among the 12 tokens .* got 0, 1 and 12"),
        (QuantizedSpace(MLPSpace(6, 4)), Classification(3), r"got 3 and MLPSpace.num_classes=4"),
    ],
)
def test_a_space_that_does_not_fit_the_task_is_refused(space: SearchSpace, task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supernet(space, task, source=QuantizedWeights if isinstance(space, QuantizedSpace) else SharedWeights)


@pytest.mark.parametrize(
    ("space", "task"),
    [
        (language(), LanguageModelling()),
        (language(5), Classification(5)),
        (translation(padding=3), Translation(padding=3, max_length=8)),
    ],
)
def test_a_space_that_fits_the_task_is_taken(space: SearchSpace, task: Task) -> None:
    assert Supernet(space, task).task is task


def test_data_with_more_or_longer_tokens_than_the_networks_take_are_refused() -> None:
    for data in (None, SimpleNamespace(), SimpleNamespace(vocabulary_size=12, max_length=8)):
        check_data(translation(), data)
    check_data(MLPSpace(6, 4), SimpleNamespace(vocabulary_size=100, max_length=100))
    with pytest.raises(ValueError, match=r"TranslationSpace.vocabulary must be at least 13, .* got 12"):
        check_data(translation(), SimpleNamespace(vocabulary_size=13))
    with pytest.raises(ValueError, match=r"TranslationSpace.context must be at least 9, .* got 8"):
        check_data(translation(), SimpleNamespace(max_length=9))


@pytest.mark.parametrize(
    ("space", "said", "message"),
    [
        (GraphSpace(6, 3, nodes=40, edges=60), {"nodes": 41}, r"GraphSpace.nodes must be 41, the nodes .* got 40"),
        (GraphSpace(6, 3, nodes=40, edges=60), {"nodes": 40, "edges": 50}, r"GraphSpace.edges must be 50, .* got 60"),
        (GraphSpace(6, 3), {"in_features": 7}, r"GraphSpace.in_features must be 7, .* got 6"),
        (MLPSpace(6, 4), {"num_classes": 5}, r"MLPSpace.num_classes must be at least 5, .* got 4"),
        (CellSpace(3, resolution=8), {"image_shape": (1, 8, 8)}, r"CellSpace.in_channels must be 1, .* got 3"),
        (CellSpace(3, resolution=8), {"image_shape": (3, 9, 9)}, r"CellSpace.resolution must be 9, .* got 8"),
        (QuantizedSpace(MLPSpace(6, 4)), {"num_classes": 5}, r"MLPSpace.num_classes must be at least 5, .* got 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_costs_are_counted_for_is_the_size_of_the_data(space: SearchSpace, said: Any, message: str) -> None:
    check_data(space, SimpleNamespace(**dict.fromkeys(said)))
    with pytest.raises(ValueError, match=message):
        check_data(space, SimpleNamespace(**said))


def test_a_space_in_the_size_of_the_data_is_taken() -> None:
    graph = SimpleNamespace(nodes=40, edges=60, in_features=6, num_classes=2)
    check_data(GraphSpace(6, 3, nodes=40, edges=60), graph)
    check_data(CellSpace(3, resolution=8), SimpleNamespace(image_shape=(3, 8, 8), num_classes=3))
    check_data(CellSpace(3, resolution=8), SimpleNamespace(image_shape=(3, 8, 6)))  # no resolution says that
    check_data(DARTSSpace(3), SimpleNamespace(nodes=41))  # nodes of a cell, and machines say


class Graph(L.LightningDataModule):
    """A graph that says nothing of itself."""

    def train_dataloader(self) -> DataLoader[Any]:
        ring = torch.stack([torch.arange(5), (torch.arange(5) + 1) % 5])
        whole: Any = [(torch.ones(5, 4), ring, torch.arange(5) % 2, torch.ones(5, dtype=torch.bool))]
        return DataLoader(whole, batch_size=None)


@pytest.mark.parametrize(("field", "given"), [("nodes", 4), ("edges", 3)])
def test_training_does_not_begin_on_a_larger_graph_than_that_of_the_space(fit: Fit, field: str, given: int) -> None:
    space = GraphSpace(4, 2, widths=(4, 8), **{"nodes": 5, "edges": 5, field: given})
    with pytest.raises(ValueError, match=rf"GraphSpace.{field} must be at least 5, .* first .* got {given}"):
        fit(Supernet(space, NodeClassification(2)), None, steps=1, datamodule=Graph())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": torch.ones(2, 4), "label": torch.zeros(2)}, r"each a dict of \['image', 'label'\]: KeyError\(0\)"),
        (7, r"each a int: TypeError"),
        ([], r"each a list of \[\]: IndexError"),
    ],
    ids=["mapping", "number", "empty"],
)
def test_a_batch_that_the_task_cannot_read_is_told(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"model.task: Classification cannot read .*{message}.* task of your own"):
        inputs_of(Classification(2), batch)


def test_training_says_what_the_task_cannot_read(fit: Fit, labelled: Any) -> None:
    loader = labelled(MLPSpace(12, 4))
    loader.batches = [{"inputs": torch.ones(2, 12)}]
    with pytest.raises(ValueError, match=r"Classification cannot read the batches of the data, each a dict"):
        fit(Supernet(MLPSpace(12, 4), Classification(4)), loader, steps=1)


def test_training_does_not_begin_with_examples_that_the_networks_do_not_take(fit: Fit, labelled: Any) -> None:
    space = FactorySpace(torch.nn.Linear, {"out_features": [2, 4]}, input_shape=(5,), fixed={"in_features": 12})
    with pytest.raises(ValueError, match=r"model.space: networks must run on .* Linear broke: .*; correct input_shape"):
        fit(Supernet(space, Classification(4)), labelled(MLPSpace(12, 4)), steps=1)


@pytest.mark.parametrize(
    ("outputs", "given"), [(torch.ones(2, 3), r"\(2, 3\)"), (torch.ones(2), r"\(2,\)"), ({"logits": 1}, "dict")]
)
def test_outputs_that_are_no_logits_of_the_classes_are_told(outputs: Any, given: str) -> None:
    with pytest.raises(ValueError, match=rf"return logits of shape \(batch, 4\).*got {given}; correct num_classes"):
        Classification(4).loss(outputs, (None, torch.zeros(2, dtype=torch.long)))


class Words(L.LightningDataModule):
    """Data that would break the table of tokens, but are never read."""

    vocabulary_size = 9

    def train_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        raise AssertionError("a batch was asked for")


def test_training_does_not_begin_on_data_that_do_not_fit(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"TransformerSpace.vocabulary must be at least 9, .* of Words, got 8"):
        fit(Supernet(language(), LanguageModelling()), None, steps=1, datamodule=Words())
