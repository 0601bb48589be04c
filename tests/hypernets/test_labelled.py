"""Labelled data sets as conditions."""

import pytest
import torch

from hypernets import ChunkedHyperNetwork, LabelledExamples, Target
from hypernets.conditions import field_from_json
from hypernets.dataset_encoders import ClassStatistics

FIELD = LabelledExamples(2, 3, embedding=5)


def test_features_and_one_hot_classes_stand_side_by_side():
    features, labels = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([2, 0, 1])
    expected = torch.tensor([[[1.0, 2, 0, 0, 1], [3, 4, 1, 0, 0], [5, 6, 0, 1, 0]]])
    assert torch.equal(FIELD.of(features, labels), expected)
    several = FIELD.of(features.expand(4, 3, 2), labels.expand(4, 3))
    assert torch.equal(several, expected.expand(4, 3, 5))


def test_class_statistics_are_a_linear_map_of_the_class_means():
    """Against explicit loops over sets and classes."""
    encoder = ClassStatistics(2, 3, 5)
    features = torch.randn(4, 7, 2)
    labels = torch.tensor([0, 1, 2, 2, 0, 0, 1])
    members = FIELD.of(features, labels.expand(4, 7))[..., 2:]
    found = encoder(features, members)
    for k in range(4):
        means = torch.cat([features[k][labels == label].mean(0) for label in range(3)])
        torch.testing.assert_close(found[k], encoder.whole.weight @ means + encoder.whole.bias)


def test_any_generator_takes_a_data_set_as_its_condition():
    torch.manual_seed(0)
    hypernet = ChunkedHyperNetwork(Target.of(torch.nn.Linear(2, 3)), {"data": FIELD}, hidden=(4, 8), chunk=4)
    labels = torch.arange(6) % 3
    first, second = FIELD.of(torch.randn(6, 2), labels), FIELD.of(torch.randn(6, 2), labels)
    weights = hypernet.generate({"data": torch.cat([first, second])})["weight"]
    assert (weights[0] != weights[1]).all()
    assert hypernet.card.inputs == ("data",)
    code = hypernet.encoder(hypernet.encoder.read({"data": first}, like=weights))
    torch.testing.assert_close(code.norm(dim=-1), torch.ones(1))
    with pytest.raises(ValueError, match="cannot be drawn at random"):
        hypernet.draw(2, generator=torch.Generator())


def test_what_is_no_labelled_set_is_refused():
    features, labels = torch.randn(6, 2), torch.arange(6) % 3
    like = torch.zeros(())
    value = FIELD.of(features, labels)
    with pytest.raises(ValueError, match=r"there is none of \[1\]"):
        FIELD.read(FIELD.of(features, torch.tensor([0, 0, 2, 2, 0, 2])), "data", like=like)
    with pytest.raises(ValueError, match="one class per example behind its features"):
        FIELD.read(value.clone().index_fill_(2, torch.tensor([4]), 0.5), "data", like=like)
    with pytest.raises(ValueError, match="must be finite"):
        FIELD.read(value.clone().index_fill_(2, torch.tensor([0]), torch.nan), "data", like=like)
    with pytest.raises(ValueError, match=r"must have shape \(K, n, 5\)"):
        FIELD.read(value[0], "data", like=like)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0 to 3"):
        FIELD.of(features, torch.tensor([0, 1, 2, 3, 0, 0]))
    with pytest.raises(ValueError, match="with one label each"):
        FIELD.of(features, labels[:5])


def test_it_comes_back_from_json_and_checks_its_sizes():
    assert field_from_json(FIELD.to_json()) == FIELD
    with pytest.raises(ValueError, match="summary must be one of"):
        LabelledExamples(2, 3, summary="median")
    with pytest.raises(ValueError, match=">= 1"):
        LabelledExamples(2, 0)
