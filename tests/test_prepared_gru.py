"""A `GRU` called again, by what its calls have found out: the same answer, and never when something is different.

A call of a form that was never met is bound and planned, the second of that form once more, and then prepared.
"""

import copy
import ctypes
import gc
import itertools
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru.launch import call_cache, execute, hang, kernel_launch, prepared, route

from .calls import case_id, make_call, make_gru
from .conftest import poison_memory
from .pairwise import pairwise
from .planted import H200
from .twins import make_twins


@pytest.fixture
def bound(monkeypatch):
    """Calls that were bound, and so not made as prepared."""
    calls = []
    bind = route.bind_gru
    monkeypatch.setattr(route, "bind_gru", lambda *args: calls.append(args) or bind(*args))
    return calls


PAIRS = pairwise(
    ("block", "grid", "step"),
    (1, 2),  # steps
    ("fp32", "fp16"),
    ("time_first", "batch_first", "every_other_feature", "odd_offset"),
    (1, 2),  # layers
    (True, False),  # initial state given
    (True, False),  # reset after
    ("forward", "reverse", "both"),
)


@pytest.mark.parametrize(
    "kernel, steps, precision, layout, layers, with_hx, reset_after, directions",
    PAIRS,
    ids=[
        f"{k}-{directions}-{case_id(18, 2, steps, precision, layout, True, layers, with_hx, reset_after)}"
        for k, steps, precision, layout, layers, with_hx, reset_after, directions in PAIRS
    ],
)
def test_the_third_call_is_the_first(
    kernel, steps, precision, layout, layers, with_hx, reset_after, directions, device, launched, bound, monkeypatch
):
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 0)  # a step at a time, and the state carried on from each
    gru, x, hx = make_call(
        kernel, 18, 2, steps, precision, layout, True, layers, with_hx, reset_after, device, directions=directions
    )
    with torch.no_grad():
        first = gru(x, hx)
        names = list(launched)
        second = gru(x, hx)
        assert len(bound) == 2
        kept = [each.clone() for each in (*first, *second)]
        other, other_hx = torch.empty_like(x).copy_(x.flip(0)), None if hx is None else hx.flip(1)
        if layout == "every_other_feature":
            other = torch.stack([other, other], -1).flatten(2)[..., ::2]
        elif layout == "odd_offset":
            other = torch.cat([other.flatten()[:1], other.flatten()])[1:].view(x.shape)
        launched.clear()
        with poison_memory():
            third = gru(other, other_hx)
        assert len(bound) == 2
        assert launched == names
        launched.clear()
        expected = copy.deepcopy(gru)(other, other_hx)  # which is not prepared
        assert len(bound) == 3
        for mine, its in zip(third, expected):
            assert torch.equal(mine, its)
            assert mine.shape == its.shape and mine.stride() == its.stride() and mine.dtype == its.dtype
        for now, before in zip((*first, *second), kept):
            assert torch.equal(now, before), "results of different calls share memory"


def make(device, kernel="block", **options):
    """A GRU and a call of it that is prepared: small, and of all that has several weights."""
    gru = make_gru(7, 16, "fp16", device, kernel, **({"num_layers": 2, "bidirectional": True} | options))
    states = gru.num_layers * (2 if gru.bidirectional else 1)
    x, hx = torch.randn(2, 2, 7, device=device).half(), torch.randn(states, 2, 16, device=device).half()
    with torch.no_grad():
        gru(x, hx)
        gru(x, hx)
    return gru, x, hx


def changes():
    def weight(gru, x, hx):
        gru.weight_hh_l1_reverse = nn.Parameter(gru.weight_hh_l1_reverse.detach() * 2)

    def data(gru, x, hx):
        gru.bias_ih_l1.data = gru.bias_ih_l1.data * 2

    def tied(gru, x, hx):
        gru.weight_hh_l0_reverse = gru.weight_hh_l0

    def transposed(gru, x, hx):
        """The same memory, read otherwise."""
        gru.weight_hh_l0.data = gru.weight_hh_l0.data.view(16, 48).T

    def half(gru, x, hx):
        return gru.to(torch.bfloat16) and (x.bfloat16(), hx.bfloat16())

    return {
        "another weight": weight,
        "another weight's data": data,
        "a weight tied to another": tied,
        "a weight that lies otherwise": transposed,
        "another dtype": half,
        "another batch": lambda gru, x, hx: (x[:, :1], hx[:, :1]),
        "more steps": lambda gru, x, hx: (torch.cat([x, x]), hx),
        "no state": lambda gru, x, hx: (x, None),
        "unbatched": lambda gru, x, hx: (x[:, 0], hx[:, 0]),
        "lengths": lambda gru, x, hx: (x, hx, torch.tensor([2, 1], device=x.device)),
        "an odd address": lambda gru, x, hx: (torch.cat([x[0, 0, :1], x.flatten()])[1:].view(2, 2, 7), hx),
        "other strides": lambda gru, x, hx: (x.transpose(0, 2).contiguous().transpose(0, 2), hx),
        "other strides of the state": lambda gru, x, hx: (x, hx.transpose(0, 2).contiguous().transpose(0, 2)),
        "whose batch comes first": lambda gru, x, hx: setattr(gru, "batch_first", True),
        "another backend": lambda gru, x, hx: setattr(gru, "backend", "step"),
        "where r comes": lambda gru, x, hx: setattr(gru, "reset_after", False),
        "training": lambda gru, x, hx: gru.train() and None,
        "plans": lambda gru, x, hx: call_cache.clear_call_cache(),
    }


@pytest.mark.parametrize("name", changes())
def test_what_is_different_is_seen(name, device, bound):
    gru, x, hx = make(device)
    with torch.no_grad():
        gru(x, hx)
        assert len(bound) == 2
        arguments = changes()[name](gru, x, hx) or (x, hx)
        actual = gru(*arguments)
        assert len(bound) == 3
        call_cache.clear_call_cache()
        for mine, its in zip(actual, gru(*arguments)):
            assert torch.equal(mine, its)


def test_what_one_direction_can_change_is_seen(device, bound):
    gru, x, hx = make(device, num_layers=1, bidirectional=False)
    resets = torch.tensor([[False, True], [True, False]], device=device)
    with torch.no_grad():
        forward = gru(x, hx)[0]
        assert len(bound) == 2
        assert not torch.equal(gru(x, hx, resets=resets)[0], forward)
        gru.reverse = True
        backward = gru(x, hx)[0]
        assert len(bound) == 4
        assert torch.equal(backward, copy.deepcopy(gru)(x, hx)[0])
        assert not torch.equal(backward, forward)


def test_modes_are_seen(device, bound):
    gru, x, hx = make(device)
    with torch.no_grad():
        before = gru(x, hx)[0]
        for dtype in (torch.float16, torch.bfloat16):
            call = x.to(dtype), hx.to(dtype)
            with torch.autocast(device, dtype):
                outputs = []
                for _ in range(4):
                    gru.weight_hh_l0.mul_(-1)  # if that of autocast's dtype was kept, it does not show
                    outputs.append(gru(x, hx)[0])
                    assert torch.equal(gru(*call)[0], outputs[-1])
                assert all(output.dtype == dtype for output in outputs)
                assert torch.equal(outputs[3], copy.deepcopy(gru)(x, hx)[0])
                assert not torch.equal(outputs[2], outputs[3])
        others = {name: 2 * weight for name, weight in gru.named_parameters()}
        for _ in range(3):
            twice = torch.func.functional_call(gru, others, (x, hx))[0]
            assert not torch.equal(twice, before)
        for _ in range(3):
            assert torch.equal(gru(x, hx)[0], before)
        bound.clear()
        hang.get_watchdog(x.device)._seen.value = 1
        with pytest.raises(RuntimeError, match="gave up"):
            gru(x, hx)
        assert not bound
    with torch.inference_mode():
        assert torch.equal(gru(x, hx)[0], before)
    output = gru(x, hx)[0]
    assert torch.equal(output, before)
    with pytest.raises(RuntimeError, match="can only be called in training mode"):
        output.sum().backward()
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        gru(x[..., :6], hx)


def test_precision_is_seen(device, bound):
    gru = make_gru(7, 16, "fp32", device)
    x = torch.randn(2, 2, 7, device=device)
    outputs = []
    with torch.no_grad():
        for precision in ("ieee", "tf32") * 3:
            torch.backends.cudnn.rnn.fp32_precision = precision
            outputs.append(gru(x)[0])
    assert len(bound) == 4  # of either two, and both are kept
    assert torch.equal(outputs[4], outputs[0]) and torch.equal(outputs[5], outputs[1])
    assert not torch.equal(outputs[0], outputs[1])


def test_with_gradients_to_record_nothing_is_prepared(device, bound):
    gru, x, hx = make(device)
    for _ in range(3):
        assert gru(x, hx)[0].requires_grad
    assert len(bound) == 5
    gru.requires_grad_(False)
    for _ in range(3):
        assert not gru(x, hx)[0].requires_grad
    assert len(bound) == 7
    hx.requires_grad_()
    assert gru(x, hx)[0].requires_grad
    gru.weight_hh_l1.requires_grad_()
    assert gru(x, hx.detach())[0].requires_grad


@pytest.mark.parametrize("let_go", ["another state dict", "other registrations", "the module"])
@pytest.mark.parametrize("kind, kernel", [("gru", "grid"), ("cell", "block"), ("stream", "step")])
def test_no_weight_is_kept_that_its_module_has_let_go(kind, kernel, let_go, device):
    if kind == "cell":
        module, x = triton_gru.GRUCell(4, 16, device=device, backend=kernel).eval(), torch.randn(2, 4, device=device)
    else:
        module, x = make_gru(4, 16, "fp32", device, kernel), torch.randn(3, 2, 4, device=device)
    call, x = (module.stream(2), x[0]) if kind == "stream" else (module, x)
    with torch.no_grad():
        for _ in range(4):
            call(x)
    weights = [weakref.ref(parameter) for parameter in module.parameters()]
    if let_go == "the module":
        del module, call
    elif let_go == "another state dict":
        others = {name: 2 * weight for name, weight in module.state_dict().items()}
        module.load_state_dict(others, assign=True)
    else:
        for name, weight in list(module.named_parameters()):
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(2 * weight.detach()))
        del weight
        with torch.no_grad():
            call(x)  # torch's list of weights, too, is brought up to date by a call
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    if let_go != "the module":
        with torch.no_grad():
            first = module.stream(2)(x) if kind == "stream" else module(x)
            call.reset() if kind == "stream" else None
            for mine, its in zip(call(x), first):
                assert torch.equal(mine, its)


@pytest.mark.parametrize("kind, shape", [(triton_gru.GRU, (3, 2, 4)), (triton_gru.GRUCell, (2, 4))])
def test_a_module_whose_parameters_are_swapped_is_served(kind, shape, device):
    """torch does not swap a parameter that anything has a weak reference to."""
    module = kind(4, 16, backend="step", device=device).eval()
    x = torch.randn(shape, device=device)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.no_grad():
            for _ in range(4):
                module(x)
            module.half()
            results = [module(x.half()) for _ in range(4)]
            expected = copy.deepcopy(module)(x.half())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_weights_that_change_in_place_are_read_anew(device, bound):
    gru, x, hx = make(device)
    with torch.no_grad():
        before = gru(x, hx)[0]
        gru.weight_hh_l0.mul_(2)
        after = gru(x, hx)[0]
        assert len(bound) == 2
        assert not torch.equal(before, after)
        assert torch.equal(after, copy.deepcopy(gru)(x, hx)[0])


def test_weights_made_anew_for_each_call_are_read(device):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    gru, x, hx = make(device, num_layers=1, bidirectional=False)
    cell = triton_gru.GRUCell(7, 16, device=device, dtype=torch.float16, backend="step").eval()
    for module, name, *call in ((gru, "weight_hh_l0", x, hx), (cell, "weight_hh", x[0], hx[0])):
        nn.utils.parametrize.register_parametrization(module, name, Twice())
        results = []
        with torch.no_grad():
            for _ in range(4):
                results.append(module(*call)[0])
                module.parametrizations[name].original.mul_(-1.5)
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_what_begins_where_something_else_does_is_not_taken_for_it(device):
    gru = make_gru(16, 16, "fp16", device)
    x, hx = torch.randn(2, 2, 16, device=device).half(), torch.randn(1, 2, 16, device=device).half()
    with torch.no_grad():
        for _ in range(3):
            gru(x, x[:1])
        assert torch.equal(gru(x, hx)[0], copy.deepcopy(gru)(x, hx)[0])
        hx = gru.weight_ih_l0[:2].unsqueeze(0)
        for _ in range(3):
            gru(x, hx)
        hx = hx.clone() * 2
        assert torch.equal(gru(x, hx)[0], copy.deepcopy(gru)(x, hx)[0])


def test_the_mailbox_is_cleared_before_each_launch(kernels_on_cpu, monkeypatch):
    """Memory that is new may be clear by chance: results would be right without."""
    prepare, seen = kernel_launch.Launch.make_starter, []

    def looking(self):
        start = prepare(self)

        def look(*args):
            mailbox = args[self.kernel.arg_names.index("mailbox")]
            words = (ctypes.c_int64 * self.clear.words.numel()).from_address(mailbox)
            seen.append(set(words) == {self.clear.value})
            start(*args)

        return start if self.clear is None else look

    monkeypatch.setattr(kernel_launch.Launch, "make_starter", looking)
    gru, x, hx = make("cpu", "grid", num_layers=2, bidirectional=False)
    with torch.no_grad(), poison_memory():
        gru(x, hx)
    assert seen == [True, True]


def test_forms_are_bounded(device, bound, monkeypatch):
    monkeypatch.setattr(call_cache, "MAX_SIGNATURES", 3)
    gru, x, hx = make(device, num_layers=1, bidirectional=False)
    with torch.no_grad():
        for steps in (1, 2, 3, 4):
            x = torch.randn(steps, 2, 7, device=device).half()
            gru(x, hx)
            gru(x, hx)
        assert len(bound) == 8  # of two steps it was prepared
        assert len(call_cache._caches[gru].routes) == 3
        gru(x, hx)
        assert len(bound) == 8
        gru(x[:2], hx)
        assert len(bound) == 9


def test_what_is_met_once_is_not_prepared(device, monkeypatch):
    monkeypatch.setattr(call_cache, "prepare", lambda *args: pytest.fail("it was"))
    gru = make_gru(7, 16, "fp16", device)
    with torch.no_grad():
        for steps in (1, 2, 3):
            gru(torch.randn(steps, 2, 7, device=device).half())


def test_many_launches_are_not_kept(device, bound, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_LAUNCHES", 3)
    gru = make_gru(7, 16, "fp16", device, "step")
    x = torch.randn(3, 2, 7, device=device).half()
    with torch.no_grad():
        first = gru(x)[0]
        gru(x)
        monkeypatch.delattr(call_cache, "launches")  # nor are they looked at again
        assert torch.equal(gru(x)[0], first)
        assert len(bound) == 3


@pytest.mark.parametrize("training", [True, False])
def test_that_torchs_own_serves_is_kept(training, old_gpu_on_cpu, bound):
    theirs, ours = make_twins(7, 16, 2, batch_first=True)
    x, hx = torch.randn(2, 3, 7), torch.randn(2, 2, 16)
    with torch.set_grad_enabled(not training):
        for module in (theirs.train(training), ours.train(training)):
            for _ in range(3):
                output, _ = module(x, hx)
                assert output.requires_grad == (not training)
        assert len(bound) == 1
        assert torch.equal(ours(x)[0], theirs(x)[0])
        assert len(bound) == 2
        ours.reset_after = False
        assert not torch.equal(ours(x, hx)[0], output)
        ours.reset_after, ours.reverse = True, True
        assert torch.equal(ours(x, hx)[0].flip(1), theirs(x.flip(1), hx)[0])
        ours.reverse = False
        with pytest.raises(ValueError, match="dtype"):
            ours.double()(x, hx)
        x, hx = x.double(), hx.double()
        assert torch.equal(ours(x, hx)[0], theirs.double()(x, hx)[0])
        ours.backend = "block"
        with pytest.raises(RuntimeError, match="no kernel for float64|training mode"):
            ours(x, hx)


def test_that_torchs_own_serves_a_cell_is_kept(old_gpu_on_cpu, monkeypatch):
    cell = triton_gru.GRUCell(7, 16)
    x = torch.randn(2, 7)
    cell.eval()
    first = cell(x)
    monkeypatch.delattr(route, "bind_cell")
    second = cell(x)
    assert torch.equal(first, second)
    second.sum().backward()
    assert cell.weight_ih.grad is not None


def test_nothing_is_kept_of_a_module_that_is_gone(device):
    gru, x, hx = make(device)
    assert gru in call_cache._caches
    gone = weakref.ref(x), weakref.ref(hx), weakref.ref(gru)
    pickle.loads(pickle.dumps(gru))
    del x, hx
    assert gone[0]() is None and gone[1]() is None
    kept = len(call_cache._caches)
    del gru
    assert gone[2]() is None
    assert len(call_cache._caches) == kept - 1


@pytest.mark.parametrize("steps, most", [(16, 40), (1, 40)])
def test_a_prepared_call_costs_the_host_little(steps, most, monkeypatch):
    """Python's functions that run in it, of torch.nn.Module too; a launch is as one."""
    monkeypatch.setattr(route, "find_device", lambda device: H200)
    monkeypatch.setattr(execute, "start", lambda launches: list(launches))
    monkeypatch.setattr(kernel_launch.Launch, "make_starter", lambda self: lambda *args: None)
    gru = triton_gru.GRU(16, 512, dtype=torch.float16, backend="grid" if steps > 1 else "step").eval()
    x, hx = torch.randn(steps, 1, 16).half(), torch.randn(1, 1, 512).half()
    calls = []

    def count(frame, event, argument):
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    with torch.no_grad():
        gru(x, hx)
        gru(x, hx)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            gru(x, hx)
        finally:
            sys.setprofile(before)
    assert "PreparedCall.__call__" in calls
    assert len(calls) < most, calls


PACKED = pairwise(
    ("block", "grid", "step"),
    ("fp32", "fp16"),
    (1, 2),  # layers
    (True, False),  # initial state given
    (True, False),  # sorted by their lengths
    ("forward", "reverse", "both"),
)


@pytest.mark.parametrize("kernel, precision, layers, with_hx, in_order, directions", PACKED)
def test_packed_input_of_other_lengths_is_prepared(
    kernel, precision, layers, with_hx, in_order, directions, device, launched, bound, monkeypatch
):
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 0)
    gru, x, hx = make_call(
        kernel, 18, 3, 3, precision, "time_first", True, layers, with_hx, True, device, directions=directions
    )

    def pack(*lengths):
        return pack_padded_sequence(x[: max(lengths)], torch.tensor(lengths), enforce_sorted=in_order)

    # Layers that write by turns into room of as many rows as there are have a form for each number.
    by_turns = layers > 1 and directions == "both"
    with torch.no_grad():
        for lengths in ((3, 3, 1), (3, 2, 2)):
            gru(pack(*lengths), hx)
        assert len(bound) == 2
        for lengths in ((3, 3, 1) if in_order else (1, 3, 3), *[(3, 3, 3)] * (not by_turns)):
            launched.clear()
            with poison_memory():
                output, h_n = gru(pack(*lengths), hx)
            assert len(bound) == 2
            names = list(launched)
            launched.clear()
            expected, expected_h_n = copy.deepcopy(gru)(pack(*lengths), hx)  # which is not prepared
            bound.pop()
            assert launched == names
            assert torch.equal(h_n, expected_h_n)
            for mine, its in zip(output, expected):
                assert its is mine is None or torch.equal(mine, its)
        gru(pack(2, 2, 1), hx)
        assert len(bound) == 3, "a sequence less long is of another form"
        gru(pack(3, 3, 3), hx)
        assert len(bound) == 3 + by_turns


def test_batch_sizes_of_a_prepared_form_are_looked_at(device):
    gru = make_gru(7, 16, "fp16", device, "block")
    x = torch.randn(4, 3, 7, device=device).half()
    packed = pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    with torch.no_grad():
        for _ in range(3):
            right, _ = gru(packed)
        assert call_cache.find_route(gru, packed, None) is not None
        packed.batch_sizes[1:3] = torch.tensor([1, 2])
        with pytest.raises(ValueError, match="must not grow"):
            gru(packed)
        packed.batch_sizes[1:3] = torch.tensor([2, 1])
        assert torch.equal(gru(packed)[0].data, right.data)


def test_a_state_that_is_sorted_and_cast_is_not_passed_on_as_it_is(device):
    """Only the launches of the call that was prepared would read its copy."""
    gru = make_gru(7, 16, "fp16", device, "block")
    packed = pack_padded_sequence(
        torch.randn(4, 3, 7, device=device).half(), torch.tensor([1, 4, 2]), enforce_sorted=False
    )
    with torch.no_grad(), torch.autocast(device, torch.float16):
        for _ in range(4):
            hx = torch.randn(1, 3, 16, device=device)
            mine, h_n = gru(packed, hx)
            expected, expected_h_n = copy.deepcopy(gru)(packed, hx)
            assert torch.equal(mine.data, expected.data) and torch.equal(h_n, expected_h_n)
