"""The problems of a model, and of a run that was recorded, which nothing of the recorder may disturb."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import triton_gru
from triton_gru.plan.problem import Problem


def test_the_problems_of_a_model():
    model = nn.ModuleList([nn.GRU(8, 16, 2, bidirectional=True), triton_gru.GRU(4, 5, reset_after=False)])
    model.append(nn.GRUCell(3, 4, dtype=torch.bfloat16))
    model.append(nn.GRU(3, 4, dtype=torch.float64))
    model.append(nn.LSTM(3, 4))
    found = triton_gru.shapes_of(model, batch_sizes=(1, 8), steps=(100,))
    assert [(p.hidden_size, p.batch_size, p.steps) for p in found] == [
        (16, 1, 100), (16, 8, 100), (5, 1, 100), (5, 8, 100), (4, 1, 1), (4, 8, 1),
    ]  # fmt: skip
    assert (found[0].num_layers, found[0].directions, found[0].precision) == (2, 2, "tf32")
    assert not found[2].reset_after and found[4].dtype == torch.bfloat16
    assert {p.dtype for p in triton_gru.shapes_of(model, dtype=torch.float16)} == {torch.float16}


def test_the_problems_of_a_run():
    both = nn.GRU(8, 16, bidirectional=True, batch_first=True).eval()
    ours, cell = triton_gru.GRU(4, 5).eval(), nn.GRUCell(3, 4)
    with triton_gru.record_shapes() as shapes, torch.no_grad():
        for _ in range(3):
            ours(torch.randn(100, 3, 4))
        both(torch.randn(2, 10, 8))
        both(torch.randn(10, 8))
        ours(torch.randn(7, 3, 4), lengths=torch.tensor([7, 1, 2]))
        ours(torch.randn(7, 3, 4), resets=torch.zeros(7, 3, dtype=torch.bool))
        ours(nn.utils.rnn.pack_padded_sequence(torch.randn(7, 3, 4), torch.tensor([7, 2, 1])))
        cell(torch.randn(5, 3))
        with torch.autocast("cpu", torch.bfloat16):
            cell(torch.randn(5, 3))
        ours.double()(torch.randn(2, 3, 4).double())
    ours.float()(torch.randn(100, 3, 4))  # no longer watched
    assert nn.GRU.__call__ is triton_gru.GRUCell.__call__ is nn.Module.__call__
    found = [(p.hidden_size, p.batch_size, p.steps, p.layout, str(p.dtype)[6:]) for p in shapes]
    assert found[0] == (5, 3, 128, "dense", "float32")
    assert sorted(found[1:]) == sorted([
        (16, 2, 16, "dense", "float32"), (16, 1, 16, "dense", "float32"), (5, 3, 8, "lengths", "float32"),
        (5, 3, 8, "dense", "float32"), (5, 3, 8, "packed", "float32"), (4, 5, 1, "dense", "float32"),
        (4, 5, 1, "dense", "bfloat16"),
    ])  # fmt: skip
    assert len(shapes) == 8 and all(isinstance(each, Problem) for each in shapes)
    ((most, calls),) = shapes.seen.most_common(1)
    assert (most.hidden_size, most.steps, calls) == (5, 100, 3)
    assert sorted(p.steps for p in shapes.seen) == [1, 1, 7, 7, 7, 10, 10, 100]
    both.train()
    with triton_gru.record_shapes() as shapes:
        both(torch.randn(2, 10, 8))
    assert len(shapes) == 0


class Masked(nn.GRU):
    """A GRU whose forward takes other arguments, and calls torch's own."""

    def forward(self, input, mask):
        return super().forward(input * mask)


def stand_ins():
    """Return calls of a model that computes nothing, or for a graph only: their sizes mean nothing, or are symbols."""
    steps, batch = torch.export.Dim("steps", min=2, max=64), torch.export.Dim("batch", min=2, max=64)
    dynamic = {"dynamic_shapes": {"input": {0: steps, 1: batch}}}
    x = torch.randn(3, 2, 4)
    return {
        "trace": lambda gru: torch.jit.trace(gru, x, check_trace=False),
        "dynamic export": lambda gru: torch.export.export(gru, (x,), **dynamic),
        "strict export": lambda gru: torch.export.export(gru, (x,), **dynamic, strict=True),
        "compile": lambda gru: torch.compile(gru, backend="eager", dynamic=True)(x),
        "fake tensors": lambda gru: fake_call(gru, x),
        "meta": lambda gru: gru.to("meta")(x.to("meta")),
        "torch.func": lambda gru: torch.func.grad(lambda x: gru(x)[0].sum())(x),
        "subclass": lambda gru: gru(x.as_subclass(type("Sub", (torch.Tensor,), {}))),
    }


def fake_call(gru, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        gru(mode.from_tensor(x))


@pytest.mark.parametrize("name", stand_ins())
def test_a_recorder_leaves_calls_that_stand_for_others_alone(name, old_gpu_on_cpu):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracers have much to say
        with triton_gru.record_shapes() as shapes:
            stand_ins()[name](triton_gru.GRU(4, 6).eval())
        assert len(shapes) == 0


def test_recorders_within_each_other_and_subclasses():
    gru, masked = nn.GRU(4, 6).eval(), Masked(4, 6).eval()
    with torch.no_grad(), triton_gru.record_shapes() as outer:
        with triton_gru.record_shapes() as inner:
            gru(torch.randn(3, 2, 4))
            masked(torch.randn(3, 2, 4), torch.ones(3, 2, 1))
            with pytest.raises(ValueError, match="2D or 3D"):
                gru(torch.randn(4))
        gru(torch.randn(9, 2, 4))
    assert [each.steps for each in inner] == [4] and [each.steps for each in outer] == [16, 4]
    assert nn.GRU.__call__ is nn.Module.__call__


@pytest.mark.parametrize(
    "given, hook, batches",
    [
        ((torch.ones(3, 2, 4), 1, 2, 3, 4), lambda module, args: (args[0],), [2]),
        ((torch.ones(()),), lambda module, args: (torch.ones(3, 2, 4),), []),
        ((torch.ones(6, 4),), lambda module, args: (args[0].view(3, 2, 4),), []),
    ],
    ids=["more arguments", "another input", "another view"],
)
def test_a_recorder_leaves_inputs_that_a_hook_replaces_alone(given, hook, batches):
    gru = nn.GRU(4, 6).eval()
    gru.register_forward_pre_hook(hook)
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        assert gru(*given)[0].shape == (3, 2, 6)
    assert [each.batch_size for each in shapes] == batches
