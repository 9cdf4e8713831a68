"""Prepared calls of a `GRU`: equal results, and a new binding if module, call or mode have changed.

The first call of a signature is bound and planned. The second is bound and planned too, and then it is prepared.
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
from triton_gru.plan import planner

from .calls import case_id, make_call, make_gru
from .conftest import poison_memory
from .pairwise import pairwise
from .planted import H200
from .twins import make_twins


@pytest.fixture
def bound_calls(monkeypatch):
    """Return the list of calls that are bound. A prepared call adds nothing to it."""
    bound = []
    bind = route.bind_gru
    monkeypatch.setattr(route, "bind_gru", lambda *args: bound.append(args) or bind(*args))
    return bound


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
        f"{kernel}-{directions}-{case_id(18, 2, steps, precision, layout, True, layers, with_hx, reset_after)}"
        for kernel, steps, precision, layout, layers, with_hx, reset_after, directions in PAIRS
    ],
)
def test_third_call_is_prepared_and_equals_the_call_of_a_copy(
    kernel,
    steps,
    precision,
    layout,
    layers,
    with_hx,
    reset_after,
    directions,
    device,
    launched,
    bound_calls,
    monkeypatch,
):
    # Chunks of one step, with the state carried from each to the next.
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 0)
    gru, x, hx = make_call(
        kernel, 18, 2, steps, precision, layout, True, layers, with_hx, reset_after, device, directions=directions
    )
    with torch.no_grad():
        first = gru(x, hx)
        names = list(launched)
        second = gru(x, hx)
        assert len(bound_calls) == 2
        copies = [result.clone() for result in (*first, *second)]
        other_x, other_hx = torch.empty_like(x).copy_(x.flip(0)), None if hx is None else hx.flip(1)
        if layout == "every_other_feature":
            other_x = torch.stack([other_x, other_x], -1).flatten(2)[..., ::2]
        elif layout == "odd_offset":
            other_x = torch.cat([other_x.flatten()[:1], other_x.flatten()])[1:].view(x.shape)
        launched.clear()
        with poison_memory():
            third = gru(other_x, other_hx)
        assert len(bound_calls) == 2
        assert launched == names
        launched.clear()
        expected = copy.deepcopy(gru)(other_x, other_hx)  # a copy is not prepared
        assert len(bound_calls) == 3
        for actual_result, expected_result in zip(third, expected):
            assert torch.equal(actual_result, expected_result)
            assert (
                actual_result.shape == expected_result.shape
                and actual_result.stride() == expected_result.stride()
                and actual_result.dtype == expected_result.dtype
            )
        for result, copied in zip((*first, *second), copies):
            assert torch.equal(result, copied), "results of different calls share memory"


def make_prepared_call(device, kernel="block", **options):
    """Return a small GRU of two layers and directions by default, and the input and hx of a call that is prepared."""
    gru = make_gru(7, 16, "fp16", device, kernel, **({"num_layers": 2, "bidirectional": True} | options))
    states = gru.num_layers * (2 if gru.bidirectional else 1)
    x, hx = torch.randn(2, 2, 7, device=device).half(), torch.randn(states, 2, 16, device=device).half()
    with torch.no_grad():
        gru(x, hx)
        gru(x, hx)
    return gru, x, hx


def make_changes():
    """Return the name of each change and a function that makes it.

    The function takes the GRU and the arguments of a call. It returns other arguments, or None to keep them.
    """

    def replace_weight(gru, x, hx):
        gru.weight_hh_l1_reverse = nn.Parameter(gru.weight_hh_l1_reverse.detach() * 2)

    def replace_data(gru, x, hx):
        gru.bias_ih_l1.data = gru.bias_ih_l1.data * 2

    def tie_weights(gru, x, hx):
        gru.weight_hh_l0_reverse = gru.weight_hh_l0

    def transpose_weight(gru, x, hx):
        """Replace a weight by other strides over the same memory."""
        gru.weight_hh_l0.data = gru.weight_hh_l0.data.view(16, 48).T

    def cast_to_bfloat16(gru, x, hx):
        return gru.to(torch.bfloat16) and (x.bfloat16(), hx.bfloat16())

    return {
        "another weight": replace_weight,
        "another weight's data": replace_data,
        "a weight tied to another": tie_weights,
        "a weight of other strides": transpose_weight,
        "another dtype": cast_to_bfloat16,
        "another batch": lambda gru, x, hx: (x[:, :1], hx[:, :1]),
        "more steps": lambda gru, x, hx: (torch.cat([x, x]), hx),
        "no state": lambda gru, x, hx: (x, None),
        "unbatched": lambda gru, x, hx: (x[:, 0], hx[:, 0]),
        "lengths": lambda gru, x, hx: (x, hx, torch.tensor([2, 1], device=x.device)),
        "an odd address": lambda gru, x, hx: (torch.cat([x[0, 0, :1], x.flatten()])[1:].view(2, 2, 7), hx),
        "other strides": lambda gru, x, hx: (x.transpose(0, 2).contiguous().transpose(0, 2), hx),
        "other strides of the state": lambda gru, x, hx: (x, hx.transpose(0, 2).contiguous().transpose(0, 2)),
        "batch_first": lambda gru, x, hx: setattr(gru, "batch_first", True),
        "another backend": lambda gru, x, hx: setattr(gru, "backend", "step"),
        "reset_after": lambda gru, x, hx: setattr(gru, "reset_after", False),
        "training": lambda gru, x, hx: gru.train() and None,
        "plans": lambda gru, x, hx: planner.clear_plan_cache(),
    }


@pytest.mark.parametrize("name", make_changes())
def test_changes_between_calls_are_noticed(name, device, bound_calls):
    gru, x, hx = make_prepared_call(device)
    with torch.no_grad():
        gru(x, hx)
        assert len(bound_calls) == 2
        arguments = make_changes()[name](gru, x, hx) or (x, hx)
        actual = gru(*arguments)
        assert len(bound_calls) == 3
        planner.clear_plan_cache()
        for actual_result, expected_result in zip(actual, gru(*arguments)):
            assert torch.equal(actual_result, expected_result)


def test_changes_of_resets_and_reverse_are_noticed(device, bound_calls):
    gru, x, hx = make_prepared_call(device, num_layers=1, bidirectional=False)
    resets = torch.tensor([[False, True], [True, False]], device=device)
    with torch.no_grad():
        forward = gru(x, hx)[0]
        assert len(bound_calls) == 2
        assert not torch.equal(gru(x, hx, resets=resets)[0], forward)
        gru.reverse = True
        backward = gru(x, hx)[0]
        assert len(bound_calls) == 4
        assert torch.equal(backward, copy.deepcopy(gru)(x, hx)[0])
        assert not torch.equal(backward, forward)


def test_modes_of_torch_are_noticed(device, bound_calls):
    gru, x, hx = make_prepared_call(device)
    with torch.no_grad():
        output_before = gru(x, hx)[0]
        for dtype in (torch.float16, torch.bfloat16):
            call = x.to(dtype), hx.to(dtype)
            with torch.autocast(device, dtype):
                outputs = []
                for _ in range(4):
                    gru.weight_hh_l0.mul_(-1)  # a weight kept in autocast's dtype would not show this
                    outputs.append(gru(x, hx)[0])
                    assert torch.equal(gru(*call)[0], outputs[-1])
                assert all(output.dtype == dtype for output in outputs)
                assert torch.equal(outputs[3], copy.deepcopy(gru)(x, hx)[0])
                assert not torch.equal(outputs[2], outputs[3])
        other_weights = {name: 2 * weight for name, weight in gru.named_parameters()}
        for _ in range(3):
            other_output = torch.func.functional_call(gru, other_weights, (x, hx))[0]
            assert not torch.equal(other_output, output_before)
        for _ in range(3):
            assert torch.equal(gru(x, hx)[0], output_before)
        bound_calls.clear()
        hang.get_watchdog(x.device)._seen.value = 1
        with pytest.raises(RuntimeError, match="gave up"):
            gru(x, hx)
        assert not bound_calls
    with torch.inference_mode():
        assert torch.equal(gru(x, hx)[0], output_before)
    output = gru(x, hx)[0]
    assert torch.equal(output, output_before)
    with pytest.raises(RuntimeError, match="can only be called in training mode"):
        output.sum().backward()
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        gru(x[..., :6], hx)


def test_changes_of_precision_are_noticed(device, bound_calls):
    gru = make_gru(7, 16, "fp32", device)
    x = torch.randn(2, 2, 7, device=device)
    outputs = []
    with torch.no_grad():
        for precision in ("ieee", "tf32") * 3:
            torch.backends.cudnn.rnn.fp32_precision = precision
            outputs.append(gru(x)[0])
    assert len(bound_calls) == 4  # two for each precision, and both signatures are kept
    assert torch.equal(outputs[4], outputs[0]) and torch.equal(outputs[5], outputs[1])
    assert not torch.equal(outputs[0], outputs[1])


def test_recording_calls_are_not_prepared(device, bound_calls):
    gru, x, hx = make_prepared_call(device)
    for _ in range(3):
        assert gru(x, hx)[0].requires_grad
    assert len(bound_calls) == 5
    gru.requires_grad_(False)
    for _ in range(3):
        assert not gru(x, hx)[0].requires_grad
    assert len(bound_calls) == 7
    hx.requires_grad_()
    assert gru(x, hx)[0].requires_grad
    gru.weight_hh_l1.requires_grad_()
    assert gru(x, hx.detach())[0].requires_grad


@pytest.mark.parametrize("release", ["another state dict", "other registrations", "the module"])
@pytest.mark.parametrize("kind, kernel", [("gru", "grid"), ("cell", "block"), ("stream", "step")])
def test_weights_released_by_the_module_are_not_kept(kind, kernel, release, device):
    if kind == "cell":
        module, x = triton_gru.GRUCell(4, 16, device=device, backend=kernel).eval(), torch.randn(2, 4, device=device)
    else:
        module, x = make_gru(4, 16, "fp32", device, kernel), torch.randn(3, 2, 4, device=device)
    call, x = (module.stream(2), x[0]) if kind == "stream" else (module, x)
    with torch.no_grad():
        for _ in range(4):
            call(x)
    weights = [weakref.ref(parameter) for parameter in module.parameters()]
    if release == "the module":
        del module, call
    elif release == "another state dict":
        other_weights = {name: 2 * weight for name, weight in module.state_dict().items()}
        module.load_state_dict(other_weights, assign=True)
    else:
        for name, weight in list(module.named_parameters()):
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(2 * weight.detach()))
        del weight
        with torch.no_grad():
            call(x)  # a call also updates the list of weights that `nn.GRU` keeps
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    if release != "the module":
        with torch.no_grad():
            expected = module.stream(2)(x) if kind == "stream" else module(x)
            call.reset() if kind == "stream" else None
            for actual_result, expected_result in zip(call(x), expected):
                assert torch.equal(actual_result, expected_result)


@pytest.mark.parametrize("module_class, shape", [(triton_gru.GRU, (3, 2, 4)), (triton_gru.GRUCell, (2, 4))])
def test_module_with_swapped_parameters_is_served(module_class, shape, device):
    """torch refuses to swap a parameter with weak references, so the package may hold none."""
    module = module_class(4, 16, backend="step", device=device).eval()
    x = torch.randn(shape, device=device)
    swaps_before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.no_grad():
            for _ in range(4):
                module(x)
            module.half()
            results = [module(x.half()) for _ in range(4)]
            expected = copy.deepcopy(module)(x.half())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps_before)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_weights_changed_in_place_are_read_again(device, bound_calls):
    gru, x, hx = make_prepared_call(device)
    with torch.no_grad():
        output_before = gru(x, hx)[0]
        gru.weight_hh_l0.mul_(2)
        output_after = gru(x, hx)[0]
        assert len(bound_calls) == 2
        assert not torch.equal(output_before, output_after)
        assert torch.equal(output_after, copy.deepcopy(gru)(x, hx)[0])


def test_parametrized_weights_are_read_in_each_call(device):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    gru, x, hx = make_prepared_call(device, num_layers=1, bidirectional=False)
    cell = triton_gru.GRUCell(7, 16, device=device, dtype=torch.float16, backend="step").eval()
    for module, name, *call in ((gru, "weight_hh_l0", x, hx), (cell, "weight_hh", x[0], hx[0])):
        nn.utils.parametrize.register_parametrization(module, name, Twice())
        results = []
        with torch.no_grad():
            for _ in range(4):
                results.append(module(*call)[0])
                module.parametrizations[name].original.mul_(-1.5)
        assert not any(torch.equal(earlier, later) for earlier, later in itertools.pairwise(results))


def test_tensors_at_one_address_are_not_confused(device):
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


def test_mailbox_is_cleared_before_each_launch(kernels_on_cpu, monkeypatch):
    """New memory may be clear by chance, so right results would not prove that it is cleared."""
    make_starter, was_filled = kernel_launch.Launch.make_starter, []

    def make_observed_starter(self):
        """Return a starter that first notes whether the launch's mailbox is clear, if the launch has a mailbox."""
        start = make_starter(self)

        def start_observed(*args):
            mailbox = args[self.kernel.arg_names.index("mailbox")]
            words = (ctypes.c_int64 * self.fill.words.numel()).from_address(mailbox)
            was_filled.append(set(words) == {self.fill.value})
            start(*args)

        return start if self.fill is None else start_observed

    monkeypatch.setattr(kernel_launch.Launch, "make_starter", make_observed_starter)
    gru, x, hx = make_prepared_call("cpu", "grid", num_layers=2, bidirectional=False)
    with torch.no_grad(), poison_memory():
        gru(x, hx)
    assert was_filled == [True, True]


def test_number_of_signatures_is_limited(device, bound_calls, monkeypatch):
    monkeypatch.setattr(call_cache, "MAX_SIGNATURES", 3)
    gru, x, hx = make_prepared_call(device, num_layers=1, bidirectional=False)
    with torch.no_grad():
        for steps in (1, 2, 3, 4):
            x = torch.randn(steps, 2, 7, device=device).half()
            gru(x, hx)
            gru(x, hx)
        assert len(bound_calls) == 8  # two calls of each signature
        assert len(call_cache._caches[gru].routes) == 3
        gru(x, hx)
        assert len(bound_calls) == 8
        gru(x[:2], hx)
        assert len(bound_calls) == 9


def test_signatures_seen_once_are_not_prepared(device, monkeypatch):
    monkeypatch.setattr(call_cache, "prepare", lambda *args: pytest.fail("a signature seen once was prepared"))
    gru = make_gru(7, 16, "fp16", device)
    with torch.no_grad():
        for steps in (1, 2, 3):
            gru(torch.randn(steps, 2, 7, device=device).half())


def test_calls_of_many_launches_are_not_prepared(device, bound_calls, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_LAUNCHES", 3)
    gru = make_gru(7, 16, "fp16", device, "step")
    x = torch.randn(3, 2, 7, device=device).half()
    with torch.no_grad():
        first = gru(x)[0]
        gru(x)
        monkeypatch.delattr(call_cache, "launches")  # the launches are not enumerated again either
        assert torch.equal(gru(x)[0], first)
        assert len(bound_calls) == 3


@pytest.mark.parametrize("training", [True, False])
def test_route_to_nn_gru_is_cached(training, old_gpu_on_cpu, bound_calls):
    """Later changes of the module and invalid arguments are noticed."""
    theirs, ours = make_twins(7, 16, 2, batch_first=True)
    x, hx = torch.randn(2, 3, 7), torch.randn(2, 2, 16)
    with torch.set_grad_enabled(not training):
        for module in (theirs.train(training), ours.train(training)):
            for _ in range(3):
                output, _ = module(x, hx)
                assert output.requires_grad == (not training)
        assert len(bound_calls) == 1
        assert torch.equal(ours(x)[0], theirs(x)[0])
        assert len(bound_calls) == 2
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


@pytest.mark.parametrize("autograd_records", [True, False])
def test_later_calls_of_an_nn_gru_cell_are_not_bound(autograd_records, old_gpu_on_cpu, monkeypatch):
    """Check that `nn.GRUCell` serves the second call directly if autograd records, and by a cached route otherwise."""
    cell = triton_gru.GRUCell(7, 16).eval()
    x = torch.randn(2, 7)
    with torch.set_grad_enabled(autograd_records):
        first = cell(x)
        assert (cell in call_cache._caches) != autograd_records
        monkeypatch.delattr(route, "bind_cell")
        second = cell(x)
    assert torch.equal(first, second)
    if autograd_records:
        second.sum().backward()
        assert cell.weight_ih.grad is not None


def test_route_that_was_planned_before_a_clear_is_forgotten():
    cache, gru = call_cache.RouteCache(), triton_gru.GRU(4, 5)
    assert cache.find(gru, "signature") is None
    planner.clear_plan_cache()  # by another thread, while the call is planned and run
    cache.add("signature", nn.GRU.forward)
    assert cache.find(gru, "signature") is None
    cache.add("signature", nn.GRU.forward)
    assert cache.find(gru, "signature") is nn.GRU.forward


def test_call_is_not_prepared_by_a_plan_that_is_outdated(device, monkeypatch):
    """`execute.run` may replace a plan that fails. Then the failing plan must not be prepared."""
    gru, run, prepared_calls = make_gru(7, 16, "fp16", device, "block"), execute.run, []
    x = torch.randn(2, 2, 7, device=device).half()
    monkeypatch.setattr(call_cache, "prepare", lambda *args: prepared_calls.append(args))
    with torch.no_grad():
        gru(x)
        with monkeypatch.context() as planted:
            planted.setattr(execute, "run", lambda *args: planner.clear_plan_cache() or run(*args))
            gru(x)
        assert not prepared_calls
        gru(x), gru(x)
    assert len(prepared_calls) == 1


def test_deleted_module_leaves_nothing_in_the_cache(device):
    gru, x, hx = make_prepared_call(device)
    assert gru in call_cache._caches
    references = weakref.ref(x), weakref.ref(hx), weakref.ref(gru)
    pickle.loads(pickle.dumps(gru))
    del x, hx
    assert references[0]() is None and references[1]() is None
    size_before = len(call_cache._caches)
    del gru
    assert references[2]() is None
    assert len(call_cache._caches) == size_before - 1


MAX_PYTHON_CALLS = 40


@pytest.mark.parametrize("steps", [16, 1])
def test_prepared_call_runs_few_python_functions(steps, monkeypatch):
    """The test counts all Python functions of a call, those of `nn.Module` too. A launch is one function."""
    monkeypatch.setattr(route, "find_device", lambda device: H200)
    monkeypatch.setattr(execute, "start", lambda launches: list(launches))
    monkeypatch.setattr(kernel_launch.Launch, "make_starter", lambda self: lambda *args: None)
    gru = triton_gru.GRU(16, 512, dtype=torch.float16, backend="grid" if steps > 1 else "step").eval()
    x, hx = torch.randn(steps, 1, 16).half(), torch.randn(1, 1, 512).half()
    calls = []

    def note_call(frame, event, argument):
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    with torch.no_grad():
        gru(x, hx)
        gru(x, hx)
        profile_before = sys.getprofile()
        sys.setprofile(note_call)
        try:
            gru(x, hx)
        finally:
            sys.setprofile(profile_before)
    assert "PreparedCall.__call__" in calls
    assert len(calls) < MAX_PYTHON_CALLS, calls


PACKED = pairwise(
    ("block", "grid", "step"),
    ("fp32", "fp16"),
    (1, 2),  # layers
    (True, False),  # initial state given
    (True, False),  # sequences sorted by length
    ("forward", "reverse", "both"),
)


@pytest.mark.parametrize("kernel, precision, layers, with_hx, in_order, directions", PACKED)
def test_packed_input_of_other_lengths_is_prepared(
    kernel, precision, layers, with_hx, in_order, directions, device, launched, bound_calls, monkeypatch
):
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 0)
    gru, x, hx = make_call(
        kernel, 18, 3, 3, precision, "time_first", True, layers, with_hx, True, device, directions=directions
    )

    def pack(*lengths):
        return pack_padded_sequence(x[: max(lengths)], torch.tensor(lengths), enforce_sorted=in_order)

    # Several layers of both directions alternate between the output and a workspace of the output's size.
    # Therefore the signature of their calls includes the number of rows.
    alternates = layers > 1 and directions == "both"
    with torch.no_grad():
        for lengths in ((3, 3, 1), (3, 2, 2)):
            gru(pack(*lengths), hx)
        assert len(bound_calls) == 2
        for lengths in ((3, 3, 1) if in_order else (1, 3, 3), *[(3, 3, 3)] * (not alternates)):
            launched.clear()
            with poison_memory():
                output, h_n = gru(pack(*lengths), hx)
            assert len(bound_calls) == 2
            names = list(launched)
            launched.clear()
            expected, expected_h_n = copy.deepcopy(gru)(pack(*lengths), hx)  # a copy is not prepared
            bound_calls.pop()
            assert launched == names
            assert torch.equal(h_n, expected_h_n)
            for actual_result, expected_result in zip(output, expected):
                assert expected_result is actual_result is None or torch.equal(actual_result, expected_result)
        gru(pack(2, 2, 1), hx)
        assert len(bound_calls) == 3, "a call with fewer steps has another signature"
        gru(pack(3, 3, 3), hx)
        assert len(bound_calls) == 3 + alternates


def test_batch_sizes_of_a_prepared_signature_are_checked(device):
    gru = make_gru(7, 16, "fp16", device, "block")
    x = torch.randn(4, 3, 7, device=device).half()
    packed = pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    with torch.no_grad():
        for _ in range(3):
            expected, _ = gru(packed)
        assert call_cache.find_route(gru, packed, None) is not None
        packed.batch_sizes[1:3] = torch.tensor([1, 2])
        with pytest.raises(ValueError, match="must not grow"):
            gru(packed)
        packed.batch_sizes[1:3] = torch.tensor([2, 1])
        assert torch.equal(gru(packed)[0].data, expected.data)


def test_sorted_and_cast_state_is_not_passed_to_a_prepared_call(device):
    """Prepared launches would read the sorted copy of the first call's state."""
    gru = make_gru(7, 16, "fp16", device, "block")
    packed = pack_padded_sequence(
        torch.randn(4, 3, 7, device=device).half(), torch.tensor([1, 4, 2]), enforce_sorted=False
    )
    with torch.no_grad(), torch.autocast(device, torch.float16):
        for _ in range(4):
            hx = torch.randn(1, 3, 16, device=device)
            actual, h_n = gru(packed, hx)
            expected, expected_h_n = copy.deepcopy(gru)(packed, hx)
            assert torch.equal(actual.data, expected.data) and torch.equal(h_n, expected_h_n)
