"""Language modelling and translation: losses, metrics, distillation without padding, decoding."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.text import SacreBLEUScore

from search_spaces import Stack, TransformerSpace, TranslationSpace
from supernets import LanguageModelling, SandwichRule, Slot, Supernet, Task, Translation
from supernets.tasks import greedy


def negative_log_likelihoods(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """One by one, in numpy."""
    rows = logits.double().flatten(0, -2).numpy()
    found = []
    for row, label in zip(rows, labels.flatten().tolist(), strict=True):
        shifted = row - row.max()
        found.append(math.log(np.exp(shifted).sum()) - shifted[label])
    return np.array(found)


def measured(task: Task, *batches: tuple[Tensor, Any]) -> dict[str, float]:
    metrics = task.metrics()
    for outputs, batch in batches:
        task.update(metrics, outputs, batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_language_modelling_measures_tokens_alike_whatever_their_batch() -> None:
    task = LanguageModelling(characters_per_token=3.0)
    batches = [(torch.randn(b, t, 7), (torch.zeros(b, t), torch.randint(7, (b, t)))) for b, t in ((2, 5), (3, 2))]
    each = np.concatenate([negative_log_likelihoods(outputs, batch[1]) for outputs, batch in batches])
    found = measured(task, *batches)
    assert found.keys() == task.quantities.keys()
    assert found["loss"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(each.mean()), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(each.mean() / math.log(2) / 3, rel=1e-5)
    assert float(task.loss(*batches[0])) == pytest.approx(each[:10].mean(), rel=1e-5)


@pytest.mark.parametrize("task", [LanguageModelling(label_smoothing=0.2), Translation(label_smoothing=0.2)])
def test_labels_are_smoothed_only_where_regularised(task: Task) -> None:
    outputs, labels = torch.randn(2, 5, 7), torch.randint(1, 7, (2, 5))
    batch = (labels, labels, labels)
    hard = negative_log_likelihoods(outputs, labels).mean()
    even = np.mean([negative_log_likelihoods(outputs, torch.full((2, 5), k)).mean() for k in range(7)])
    assert float(task.loss(outputs, batch)) == pytest.approx(hard, rel=1e-5)
    assert float(task.loss(outputs, batch, regularise=True)) == pytest.approx(0.8 * hard + 0.2 * even, rel=1e-5)


LABELS = torch.tensor([[3, 4, 2, 0, 0], [5, 2, 0, 0, 0], [3, 3, 3, 3, 2]])


def test_padding_counts_nowhere_in_translation() -> None:
    task = Translation(label_smoothing=0.1)
    outputs, teacher = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    batch = (LABELS, LABELS, LABELS)
    spoilt = torch.where((LABELS == 0)[..., None], outputs + 100 * torch.randn_like(outputs), outputs)
    kept = (LABELS != 0).flatten().numpy()
    each = negative_log_likelihoods(outputs, LABELS)[kept]
    right = (outputs.argmax(-1) == LABELS).flatten().numpy()[kept]
    for given in (outputs, spoilt):
        assert float(task.loss(given, batch)) == pytest.approx(each.mean(), rel=1e-5)
        assert float(task.loss(given, batch, regularise=True)) == pytest.approx(
            float(task.loss(outputs, batch, regularise=True)), rel=1e-5
        )
        found = measured(task, (given[:1], [part[:1] for part in batch]), (given[1:], [part[1:] for part in batch]))
        assert found == {
            "loss": pytest.approx(each.mean(), rel=1e-5),
            "token_accuracy": pytest.approx(right.mean(), rel=1e-5),
        }
        losses = [
            float(task.distil(task.counted(student, batch), task.counted(taught, batch)))
            for student, taught in ((outputs, teacher), (given, teacher))
        ]
        assert losses[0] == pytest.approx(losses[1])


def translation_space() -> TranslationSpace:
    sizes: dict[str, Any] = {"widths": (16, 24), "depths": (1, 2), "heads": (1, 2), "ffn_ratios": (1, 2)}
    return TranslationSpace(
        9, 6, encoder=Stack(**sizes), decoder=Stack(**sizes, cross_heads=(1, 2)), head_dim=8, dropout=0.1
    )


def copying(count: int, size: int = 16) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sentences of one to four of the tokens 3 to 8, whose translation is the sentence itself."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = torch.randint(1, 5, (size, 1), generator=generator)
        words = torch.randint(3, 9, (size, 5), generator=generator)
        place = torch.arange(5)
        words = torch.where(place < lengths, words, 0)
        labels = torch.where(place == lengths, 2, words)
        target = torch.cat((torch.ones(size, 1, dtype=torch.int64), words[:, :4]), 1)
        batches.append((labels, target, labels))
    return batches


class Loader:
    def __init__(self, count: int) -> None:
        self.batches = copying(count)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return iter(self.batches)


class Translations(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return Loader(100)

    def val_dataloader(self) -> Any:
        return Loader(2)

    def test_dataloader(self) -> Any:
        return Loader(2)

    def decode(self, tokens: Tensor) -> list[str]:
        rows = [row[: row.index(2)] if 2 in row else row for row in tokens.tolist()]
        return [" ".join(f"word{token}" for token in row) for row in rows]


def test_a_student_learns_nothing_from_padding() -> None:
    supernet = Supernet(translation_space(), Translation(max_length=6))
    supernet.eval()
    batch = copying(1)[0]
    teacher = torch.randn(16, 5, 9)
    spoilt = torch.where((batch[2] == 0)[..., None], 7.0, teacher)
    losses = []
    for given in (teacher, spoilt):
        torch.manual_seed(0)
        loss, _ = supernet.step_loss(Slot(supernet.space.smallest(), "student"), batch, given)
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_a_supernet_of_translators_learns(tmp_path: Any) -> None:
    task = Translation(max_length=6)
    supernet = Supernet(
        translation_space(),
        task,
        rule=SandwichRule(1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    )
    data = Translations()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=100, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(supernet, datamodule=data)
    largest = supernet.extract(supernet.space.largest())
    found = {size: float(trainer.callback_metrics[f"val/{size}/loss"]) for size in ("smallest", "middle", "largest")}
    assert max(found.values()) < 1.8, found  # 1.88 is what the frequencies of the tokens give
    assert task.report(largest, data)["bleu"] >= 0


class Copying(nn.Module):
    """Says the source again, but ``wrong`` for the token 8."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = nn.Parameter(torch.tensor(wrong), requires_grad=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        said = torch.where(source == 8, self.wrong, source)[:, : target.shape[1]]
        return nn.functional.one_hot(said, 9).float()


@pytest.mark.parametrize("wrong", [8, 7])
def test_bleu_is_that_of_greedy_translations(wrong: int) -> None:
    data, task = Translations(), Translation(max_length=5)
    references = [[text] for _, _, labels in copying(2) for text in data.decode(labels)]
    hypotheses = [text.replace("word8", f"word{wrong}") for (text,) in references]
    found = task.report(Copying(wrong), data)
    assert found == {"bleu": pytest.approx(100 * float(SacreBLEUScore()(hypotheses, references)))}
    assert (found["bleu"] == pytest.approx(100)) is (wrong == 8)
    assert task.report(Copying(wrong), L.LightningDataModule()) == {}


class Counting(nn.Module):
    """Says one more than the last target token, and the end after the source's first token."""

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        following = torch.where(target >= source[:, :1], 2, (target + 1).clamp(min=3))
        return nn.functional.one_hot(following, 10).float()


def test_greedy_decoding_stops_at_the_end_of_every_sentence() -> None:
    source = torch.tensor([[5, 9], [3, 9], [9, 9]])
    options = {"begin": 1, "end": 2, "padding": 0}
    assert greedy(Counting(), source, **options, limit=20).tolist() == [
        [3, 4, 5, 2, 0, 0, 0, 0],
        [3, 2, 0, 0, 0, 0, 0, 0],
        [3, 4, 5, 6, 7, 8, 9, 2],
    ]
    assert greedy(Counting(), source, **options, limit=2).tolist() == [[3, 4], [3, 2], [3, 4]]


def test_a_language_model_inherits_what_it_computes() -> None:
    space = TransformerSpace(
        9, 6, widths=(8, 12), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4, positions="rotary"
    )
    supernet = Supernet(space, LanguageModelling())
    tokens = torch.randint(9, (3, 6))
    for architecture in (space.smallest(), space.middle(), space.largest()):
        supernet.eval()
        functional = supernet(architecture, tokens)
        assert torch.allclose(functional, supernet.extract(architecture)(tokens), atol=1e-6)
        assert torch.equal(supernet.bind(architecture)(tokens), supernet.extract(architecture)(tokens))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModelling(label_smoothing=1.0), "0 <= label_smoothing < 1"),
        (lambda: LanguageModelling(characters_per_token=0), "characters_per_token > 0"),
        (lambda: Translation(max_length=0), "max_length >= 1"),
        (lambda: Translation(begin=0), "must be different tokens, from 0 on, got padding=0, begin=0, end=2"),
        (lambda: Translation(padding=-1), "Translation.padding, begin and end must be .* got padding=-1"),
    ],
)
def test_bad_options_are_named(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
