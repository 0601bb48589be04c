from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import Choice, FactorySpace, InvalidArchitectureError, Slicer, SlicingError, construct, describe
from search_spaces import from_config as from_config_builder
from tests.search_spaces.models import (
    Activated,
    Deaf,
    GroupedConv,
    PackedAttention,
    Relations,
    Shrinking,
    UserCNN,
    not_a_module,
    relations,
)

CNN: dict[str, Any] = {"input_shape": (1, 6, 6)}


def test_a_list_argument_is_chosen_element_by_element():
    space = FactorySpace(
        UserCNN, {"widths.length": [1, 2, 3], "widths.0": [4, 8], "widths.1": [8], "widths.2": [8, 9]}, **CNN
    )
    assert space.arguments(space.largest()) == {"widths": [8, 8, 9]}
    assert space.arguments(space.smallest()) == {"widths": [4]}
    assert space.size() == 2 + 2 + 2 * 2
    assert "widths.1" not in space.smallest()
    assert [len([*space.build(a).get_submodule("blocks").children()]) for a in (space.smallest(), space.largest())] == [
        1,
        3,
    ]


def test_a_star_stands_for_every_element():
    space = FactorySpace(UserCNN, {"widths.*": [4, 8], "widths.length": {"low": 1, "high": 2}}, **CNN)
    assert [c.name for c in space.choices] == ["widths.length", "widths.0", "widths.1"]
    assert space.choice("widths.1").requires == ("widths.length", 2)


def test_a_list_of_fixed_length_needs_no_length_choice():
    space = FactorySpace(UserCNN, {"widths.0": [4, 8], "widths.1": [4]}, **CNN)
    assert space.arguments(space.largest()) == {"widths": [8, 4]}


def test_a_builder_may_be_an_import_path():
    space = FactorySpace("torch.nn.Linear", {"out_features": [1, 2]}, fixed={"in_features": 3}, input_shape=(3,))
    assert repr(space.build(space.largest())) == "Linear(in_features=3, out_features=2, bias=True)"
    assert describe(space)["init_args"]["builder"] == "torch.nn.Linear"


def test_a_choice_of_a_function_that_the_model_keeps_is_seen():
    space = FactorySpace(Activated, {"act": ["relu", "silu"]}, input_shape=(2,))
    assert space.build(space.architecture({"act": "silu"})).act is nn.functional.silu


@pytest.mark.parametrize("example", [relations, "tests.search_spaces.models.relations"])
def test_a_model_of_several_inputs_takes_examples_of_a_function(example):
    space = FactorySpace(Relations, {"hidden": [2, 4]}, example_inputs=example)
    again = construct(describe(space))
    assert again.digest == space.digest
    for size in (1, 5):
        inputs = again.inputs(again.smallest(), size)
        assert [tuple(given.shape) for given in inputs] == [(size, 3), (2, 2 * size)]
        assert again.build(again.smallest())(*inputs).shape == (size, 2)


@pytest.mark.parametrize("given", [{}, {"input_shape": (3,), "example_inputs": relations}], ids=["none", "both"])
def test_inputs_are_given_in_one_way(given):
    with pytest.raises(ValueError, match=r"give input_shape.*or example_inputs"):
        FactorySpace(Relations, {"hidden": [2, 4]}, **given)


def test_examples_that_are_no_tensors_are_refused():
    space = FactorySpace(Relations, {"hidden": [2, 4]}, example_inputs=torch.zeros)
    with pytest.raises(ValueError, match=r"example_inputs must return a tuple of tensors.*got Tensor"):
        space.inputs(space.largest())


def test_an_argument_that_is_not_required_keeps_the_default_of_the_builder():
    space = FactorySpace(
        UserCNN,
        {"widths.0": [2, 4], "kernel": [3, 5]},
        requires={"kernel": ("widths.0", 4)},
        **CNN,
    )
    assert space.size() == 3
    assert space.build(space.smallest()).get_submodule("blocks.0.0").kernel_size == (3, 3)
    assert construct(describe(space)).choices == space.choices


def test_choices_may_be_given_ready_made():
    choices = [
        Choice("widths.length", (1, 2)),
        Choice("widths.0", (4,)),
        Choice("widths.1", (4, 8), requires=("widths.length", 2)),
    ]
    assert FactorySpace(UserCNN, choices, **CNN).size() == 3


def test_inputs_have_the_given_shape_and_dtype():
    space = FactorySpace(
        nn.Embedding, {"embedding_dim": [2, 4]}, fixed={"num_embeddings": 5}, input_shape=(7,), input_dtype="int64"
    )
    (tokens,) = space.inputs(space.smallest(), 3)
    assert (tokens.shape, tokens.dtype) == ((3, 7), torch.int64)


def test_the_report_says_what_is_elastic_and_how_it_is_shared():
    space = FactorySpace(
        PackedAttention, {"heads": [1, 2, 4]}, input_shape=(5, 6), slicing={"qkv.*": {"blocks": {"0": 3}}}
    )
    report = space.report()
    use = {tensor.name: (tensor.how, tensor.smallest, tensor.largest) for tensor in report.tensors}
    assert use == {
        "qkv.weight": ("copy", (6, 6), (24, 6)),
        "qkv.bias": ("copy", (6,), (24,)),
        "proj.weight": ("view", (6, 2), (6, 8)),
        "proj.bias": ("fixed", (6,), (6,)),
    }
    assert report.changed_by == {"heads": 3}
    total = 24 * 6 + 24 + 6 * 8 + 6
    assert (report.share("copy"), report.share("view")) == (24 * 7 / total, 48 / total)
    text = str(report)
    assert text.startswith(f"3 architectures; {total} shared parameters: 22% cut as views, 76% as copies, 3% fixed")
    assert "choice heads: changes 3 tensors" in text
    assert "qkv.weight   copy   (6, 6) -> (24, 6)" in text


def test_the_report_marks_what_shallow_architectures_do_without():
    space = FactorySpace(UserCNN, {"widths.length": [1, 2], "widths.*": [4, 8]}, **CNN)
    optional = {tensor.name for tensor in space.report().tensors if tensor.optional}
    assert optional == {f"blocks.1.{leaf}" for leaf in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert "blocks.1.0.weight  view   absent or (4, 4, 3, 3) -> (8, 8, 3, 3)" in str(space.report())


@pytest.mark.parametrize(
    ("builder", "choices", "options", "message"),
    [
        (
            PackedAttention,
            {"heads": [1, 2]},
            {},
            r"'qkv.weight' cannot be cut by prefix.*TensorRule\(blocks=\{0: 3\}\)",
        ),
        (
            GroupedConv,
            {"width": [4, 8]},
            {},
            r"'grouped.weight' cannot be cut.*of 2 groups.*TensorRule\(blocks=\{0: 2\}\)",
        ),
        (Shrinking, {"compression": [1, 2]}, {}, r"'linear.weight' is \(12, 4\) but \(6, 4\).*order the candidates"),
        (
            UserCNN,
            {"widths.length": [1, 2], "widths.0": [8], "widths.1": [2]},
            {},
            r"'head.weight' is \(3, 8\) but \(3, 2\)",
        ),
        (PackedAttention, {"heads": [1, 2]}, {"slicing": {"qvk.*": {}}}, r"rules \['qvk.\*'\] match no tensor"),
    ],
)
def test_a_builder_that_cannot_be_shared_is_refused_at_construction(builder, choices, options, message):
    with pytest.raises(SlicingError, match=message):
        FactorySpace(builder, choices, input_shape=(4,), **options)


@pytest.mark.parametrize(
    ("builder", "choices", "options", "message"),
    [
        (
            Deaf,
            {"width": [1, 2], "depht": [1, 2]},
            {},
            r"builder Deaf has no argument \['depht'\]; it accepts \['width', 'depth'\]",
        ),
        (
            Deaf,
            {"width": [1, 2], "depth": [1, 2]},
            {},
            r"choices \['depth'\] change nothing in what builder Deaf builds",
        ),
        (
            Deaf,
            {"depth": [1, 2]},
            {},
            r"builder Deaf needs the arguments \['width'\]; give them in fixed or as choices",
        ),
        (Deaf, {"width": [1, 2]}, {"fixed": {"width": 1}}, r"arguments \['width'\] are both fixed and chosen"),
        (Deaf, {"width": [0, -1]}, {}, r"builder Deaf failed with \{'width': -1\}"),
        (Deaf, {"width": "12"}, {}, "choice 'width' must be a list of candidates"),
        (not_a_module, {"width": [1, 2]}, {}, "builder not_a_module must return an nn.Module, got int"),
        (Deaf, {"width": [1, 2]}, {"input_dtype": "float31"}, "input_dtype must name a torch dtype.*got 'float31'"),
        (
            Deaf,
            {"width": [1, 2]},
            {"requires": {"depth": ("width", 2)}},
            r"requires names choices that do not exist: \['depth'\]",
        ),
        (UserCNN, {"widths.*": [4]}, {}, r"choice 'widths.\*' needs a choice 'widths.length'"),
        (UserCNN, {"widths.0": [4], "widths.2": [4]}, {}, r"elements of 'widths' must be numbered.*got \[0, 2\]"),
        (
            UserCNN,
            {"widths.*": [4], "widths.length": [1.5, 2.5]},
            {},
            "the length of a list must be an integer, got 2.5",
        ),
        (UserCNN, {"widths.0": [4], "widths.length": [1, 2]}, {}, r"choices \['widths.length'\] change nothing"),
        ("torch.nn.Lineal", {"out_features": [1, 2]}, {}, "class_path 'torch.nn.Lineal'"),
        ("no_such_module.Net", {"width": [1, 2]}, {}, "cannot be imported; is its module installed"),
    ],
)
def test_a_bad_description_is_refused_with_what_would_mend_it(builder, choices, options, message):
    with pytest.raises(ValueError, match=message):
        FactorySpace(builder, choices, input_shape=(4,), **options)


def test_a_local_builder_works_but_cannot_be_described():
    def local(width: int) -> nn.Module:
        return nn.Linear(2, width)

    space = FactorySpace(local, {"width": [1, 2]}, input_shape=(2,))
    assert space.digest == FactorySpace(local, {"width": [1, 2]}, input_shape=(2,)).digest
    with pytest.raises(ValueError, match="cannot be imported by name"):
        describe(space)
    with pytest.raises(InvalidArchitectureError, match="'width'"):
        space.architecture({"width": 3})


class Config:
    """A configuration object in the manner of Hugging Face."""

    def __init__(self, width: int = 3, depth: int = 1) -> None:
        self.width, self.depth = width, depth


class Configured(nn.Sequential):
    """A model that is built from a configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__(*(nn.Linear(config.width if i else 2, config.width) for i in range(config.depth)))


def test_a_model_that_takes_a_configuration_is_a_space():
    space = FactorySpace(
        from_config_builder,
        {"width": [2, 4], "depth": [1, 2]},
        fixed={"config": Config, "model": "tests.search_spaces.test_factory.Configured"},
        input_shape=(2,),
    )
    assert space.build(space.largest())(*space.inputs(space.largest())).shape == (1, 4)
    assert set(space.report().changed_by.values()) == {4, 2}
    again = construct(describe(space))
    assert repr(again.build(again.largest())) == repr(space.build(space.largest()))


def test_hugging_face_models_are_spaces():
    sizes = {"vocab_size": 17, "hidden_size": 8, "head_dim": 4, "num_key_value_heads": 1, "max_position_embeddings": 16}
    space = FactorySpace(
        from_config_builder,
        {"num_hidden_layers": [1, 2], "num_attention_heads": [1, 2, 4], "intermediate_size": [8, 16]},
        fixed={"config": "transformers.LlamaConfig", "model": "transformers.LlamaForCausalLM", "output": "logits"}
        | sizes,
        input_shape=(5,),
        input_dtype="int64",
    )
    big = space.build(space.largest())
    small = space.architecture({"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8})
    module = space.build(small)
    module.load_state_dict(Slicer(big, space.rules()).plan(module, small)(dict(big.named_parameters())))
    assert module(*space.inputs(small, 3)).shape == (3, 5, 17)
    use = {tensor.name: tensor for tensor in space.report().tensors}
    queries = use["model.model.layers.0.self_attn.q_proj.weight"]
    assert (queries.how, queries.smallest, queries.largest) == ("view", (4, 8), (16, 8)), "heads keep their size"
