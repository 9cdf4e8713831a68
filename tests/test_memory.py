"""Tensors whose memory does not hold their values. Results depend on the values, and no kernel reads the memory."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_map

import triton_gru
from triton_gru.plan.planner import KERNELS

from .calls import make_gru
from .twins import make_twins


def make_negated(tensor):
    """Return a tensor equal to ``tensor`` whose memory holds the opposite sign."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg() and torch.equal(view, tensor)
    return view


def make_zeros_without_memory(tensor):
    """Return zeros of the shape of ``tensor`` that have no memory."""
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class Scaled(torch.Tensor):
    """A wrapper of integers and a scale, like quantized weights. It has no memory itself."""

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=scale.dtype, device=scale.device)

    def __init__(self, integers, scale):
        self.integers, self.scale = integers, scale

    def value(self):
        """Return the values as a plain tensor."""
        return self.integers * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scale)
        args, kwargs = tree_map(lambda arg: arg.value() if isinstance(arg, cls) else arg, (args, kwargs or {}))
        return function(*args, **kwargs)


def make_scaled(tensor):
    """Return a `Scaled` tensor that is nearly equal to ``tensor``."""
    scale = tensor.detach().abs().max() / 127
    return Scaled((tensor.detach() / scale).round().to(torch.int8), scale)


def list_results(module, call):
    """Return all tensors that a call of a GRU or a cell returns."""
    results = module(*call)
    results = results if isinstance(results, tuple) else (results,)
    return [result.data if isinstance(result, PackedSequence) else result for result in results]


def make_calls(x, hx):
    """Return a name and the arguments of a call for each way to pass a batch of [T, B, I] and [1, B, H]."""
    packed = pack_padded_sequence(x, torch.tensor([3, 1, 2]), enforce_sorted=False)
    return {
        "dense": (x, hx),
        "without a state": (x,),
        "unbatched": (x[:, 0], hx[:, 0]),
        "packed": (packed._replace(data=make_negated(packed.data)), hx),
        "lengths": (x, hx, torch.tensor([0, 3, 2])),
    }


@pytest.mark.parametrize("make_view", [make_negated, make_zeros_without_memory])
def test_input_and_state_are_read_by_value(make_view, device, launched):
    gru = make_gru(4, 16, "fp32", device)
    cell = triton_gru.GRUCell(4, 16, device=device, backend="block").eval()
    x, hx = (make_view(torch.randn(*shape, device=device)) for shape in ((3, 3, 4), (1, 3, 16)))
    plain = x.clone(), hx.clone()
    with torch.no_grad():
        for (name, call), expected in zip(make_calls(x, hx).items(), make_calls(*plain).values()):
            # The calls alternate, so that a wrong cache key would serve one call with the other's route.
            for _ in range(3 if name == "dense" else 1):
                for result, expected_result in zip(list_results(gru, call), list_results(gru, expected)):
                    assert torch.equal(result, expected_result), name
        for _ in range(3):
            assert torch.equal(cell(x[0], hx[0]), cell(plain[0][0], plain[1][0]))
    assert launched.has_only("block")


def test_frames_and_their_state_are_read_by_value(device):
    gru = make_gru(4, 16, "fp32", device, "step")
    x, state = torch.randn(2, 3, 4, device=device), torch.randn(1, 3, 16, device=device)
    results = []
    for make_view in (make_negated, torch.clone):
        stream = gru.stream(3)
        stream.state = make_view(state)
        results.append(torch.stack([stream(make_view(frame)) for frame in x]))
    assert torch.equal(*results)


def get_results_or_error(module, x):
    """Return all tensors that ``module(x)`` returns, or the text of the RuntimeError that it raises."""
    try:
        return list_results(module, (x,))
    except RuntimeError as error:
        return str(error)


def make_unreadable_weights():
    """Return the name of each kind of weight that no kernel reads, with a function that makes it, and the reason."""
    return {
        "negative bit": (make_negated, "are not in its memory"),
        "no memory": (make_zeros_without_memory, "are not in its memory"),
        "subclass": (make_scaled, "Scaled is a tensor subclass"),
        "sparse": (torch.Tensor.to_sparse, "layout sparse_coo"),
        "dtype": (torch.Tensor.half, "differ in dtype"),
        "shape": (lambda weight: weight[:, :-1], r"weight_hh has the shape \[48, 15\], expected \[48, 16\]"),
    }


@pytest.mark.parametrize("name", make_unreadable_weights())
def test_unreadable_weights_go_to_nn_gru(name, device, launched):
    """Only one weight is unreadable, in the last layer of a GRU. nn.GRU computes the result or raises its own error."""
    make, reason = make_unreadable_weights()[name]
    gru = make_gru(4, 16, "fp32", device, "auto", num_layers=2)
    cell = triton_gru.GRUCell(4, 16, device=device).eval()
    for module, weight, x in ((gru, "weight_hh_l1", torch.randn(3, 2, 4)), (cell, "weight_hh", torch.randn(2, 4))):
        x = x.to(device)
        value = make(getattr(module, weight).detach())
        setattr(module, weight, nn.Parameter(value, requires_grad=False))
        with torch.no_grad():
            plan = module.plan(x)
            assert plan.kernel == "torch" and re.search(reason, dict(plan.rejection_reasons)["block"])
            actual = get_results_or_error(module, x)
            for kernel in KERNELS:
                module.backend = kernel
                with pytest.raises(RuntimeError, match=reason):
                    module(x)
            # Restore the module itself, not a copy: on a GPU torch flattens the weights of a GRU that is copied.
            expected = get_results_or_error(triton_gru.restore(module), x)
            if isinstance(expected, str):
                assert actual == expected
            else:
                torch.testing.assert_close(actual, expected)
    assert not launched


def test_sparse_input_raises_the_error_of_nn_gru(device):
    theirs, ours = (module.to(device).eval() for module in make_twins(4, 16))
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        for _ in range(3):
            ours(x)
        with pytest.raises((RuntimeError, NotImplementedError)) as expected:
            theirs(x.to_sparse())
        with pytest.raises(expected.type) as raised:
            ours(x.to_sparse())
    assert str(raised.value) == str(expected.value)


def test_weight_negated_in_place_is_noticed(device):
    """The address, strides and dtype of the weight stay the same."""
    gru = make_gru(4, 16, "fp32", device)
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        for _ in range(3):
            gru(x)
        gru.weight_hh_l0.data = torch._neg_view(gru.weight_hh_l0.data)
        with pytest.raises(RuntimeError, match="are not in its memory"):
            gru(x)


@pytest.mark.parametrize("argument", ["input", "hx", "lengths", "resets"])
def test_subclass_is_refused_by_a_kernel_and_served_by_auto(argument, device, launched):
    class Wrapped(torch.Tensor):
        pass

    gru = make_gru(4, 5, "fp32", device)
    call = {"input": torch.randn(3, 2, 4), "hx": torch.randn(1, 2, 5)}
    call |= {"lengths": torch.tensor([3, 1])} if argument == "lengths" else {}
    call |= {"resets": torch.rand(3, 2) < 0.5} if argument == "resets" else {}
    call = {name: tensor.to(device) for name, tensor in call.items()}
    wrapped = call | {argument: call[argument].as_subclass(Wrapped)}
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="Wrapped is a tensor subclass"):
            gru(**wrapped)
        gru.backend = "auto"
        results = gru(**wrapped)
        assert not launched
        for result, expected_result in zip(results, gru(**call)):
            torch.testing.assert_close(torch.Tensor(result), expected_result, rtol=0, atol=2e-3)
