"""What does not fit together is said before training: a task and its space, data and the space."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from torch import Tensor

from search_spaces import MLPSpace, SearchSpace, Stack, TransformerSpace, TranslationSpace
from supernets import Classification, LanguageModelling, Supernet, Task, Translation
from supernets.mismatch import check_data

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
    ],
)
def test_a_space_that_does_not_fit_the_task_is_refused(space: SearchSpace, task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supernet(space, task)


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


class Words(L.LightningDataModule):
    """Data that would break the table of tokens, but are never read."""

    vocabulary_size = 9

    def train_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        raise AssertionError("a batch was asked for")


def test_training_does_not_begin_on_data_that_do_not_fit(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"TransformerSpace.vocabulary must be at least 9, .* of Words, got 8"):
        fit(Supernet(language(), LanguageModelling()), None, steps=1, datamodule=Words())
