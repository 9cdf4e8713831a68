"""`accelerate` and `restore`: they change classes, and nothing else."""

import copy
import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import triton_gru

from .oracle import assert_accurate, compute_exact, count_summed_products, set_precision


class Tagger(nn.Module):
    """A usual model: nested, with two GRUs, a cell and an alias."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.ModuleDict({"first": nn.GRU(8, 12, batch_first=True), "second": nn.GRU(12, 12, 2)})
        self.alias = self.encoder["first"]
        self.cell = nn.GRUCell(12, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, tokens):
        x, _ = self.encoder["first"](self.embed(tokens))
        x, h = self.encoder["second"](x.transpose(0, 1))
        return self.out(self.cell(x[-1], h[-1]))


def test_accelerate_and_restore_work_in_place(device):
    model = Tagger().to(device).eval()
    tokens = torch.randint(20, (3, 7), device=device)
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    first = model.encoder["first"]
    expected = model(tokens)

    assert triton_gru.accelerate(model) is model
    assert type(model.encoder["first"]) is type(model.encoder["second"]) is triton_gru.GRU
    assert type(model.cell) is triton_gru.GRUCell
    assert type(model.out) is nn.Linear
    assert model.alias is model.encoder["first"] is first
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    torch.testing.assert_close(model(tokens), expected, rtol=1e-2, atol=1e-3)
    assert triton_gru.accelerate(model) is model

    assert triton_gru.restore(model) is model
    assert type(first) is type(model.encoder["second"]) is nn.GRU
    assert type(model.cell) is nn.GRUCell
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(tokens), expected)
    assert "backend" not in first.__dict__


def test_model_in_eval_without_no_grad_runs_the_kernels(device, launched):
    set_precision("fp32")
    model = Tagger().to(device).eval()
    tokens = torch.randint(20, (3, 7), device=device)
    expected, exact = model(tokens), copy.deepcopy(model).double()(tokens)
    triton_gru.accelerate(model)
    for module in model.modules():
        if isinstance(module, triton_gru.GRU | triton_gru.GRUCell):
            module.backend = "block"
    assert torch.is_grad_enabled()
    assert_accurate(model(tokens), expected, exact, "fp32", count_summed_products(model.encoder["second"]))
    assert launched.scan_count == 1 + 2 + 1
    triton_gru.restore(model)
    assert not any("backend" in module.__dict__ for module in model.modules())
    launched.clear()
    assert torch.equal(model(tokens), expected)
    assert not launched


def test_call_does_not_move_the_weights(device, launched):
    """Another module shares the weights. A CUDA graph of that module would still read them at the old address."""
    theirs = nn.GRU(4, 16, 2).to(device).eval()
    ours = triton_gru.GRU(4, 16, 2, device="meta", backend="block").eval()
    for name, parameter in theirs.named_parameters():
        setattr(ours, name, parameter)
    addresses_before = [parameter.data_ptr() for parameter in theirs.parameters()]
    with (
        # On a CPU flatten_parameters moves nothing, so the test also checks that nobody calls it.
        mock.patch.object(nn.RNNBase, "flatten_parameters") as flatten_parameters,
        torch.no_grad(),
    ):
        ours(torch.randn(3, 2, 4, device=device))
    assert launched.has_only("block")
    assert not flatten_parameters.called
    assert [parameter.data_ptr() for parameter in theirs.parameters()] == addresses_before


def test_accelerated_model_trains(device):
    torch.manual_seed(0)
    plain = Tagger().to(device)
    accelerated = triton_gru.accelerate(copy.deepcopy(plain))
    tokens = torch.randint(20, (3, 7), device=device)
    for model in (plain, accelerated):
        model(tokens).square().sum().backward()
    for parameter, expected in zip(accelerated.parameters(), plain.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_a_gru_as_the_model_is_swapped():
    gru = nn.GRU(3, 4)
    assert triton_gru.accelerate(gru) is gru
    assert type(gru) is triton_gru.GRU
    assert type(triton_gru.restore(gru)) is nn.GRU


def test_printed_model_shows_accelerated_modules():
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2)), "decoder": nn.GRUCell(2, 5)})
    text_before = repr(model)
    text_after = text_before.replace("GRU", "triton_gru.GRU")
    assert repr(triton_gru.accelerate(model)) == text_after
    assert "(0): triton_gru.GRU(3, 4)" in text_after and "(decoder): triton_gru.GRUCell(2, 5)" in text_after
    assert repr(triton_gru.restore(model)) == text_before


def test_hooks_still_fire():
    model = nn.Sequential(nn.GRU(3, 4)).eval()
    calls = []
    model[0].register_forward_pre_hook(lambda module, args: calls.append("before"))
    model[0].register_forward_hook(lambda module, args, output: calls.append("after"))
    triton_gru.accelerate(model)
    model(torch.randn(2, 1, 3))
    assert calls == ["before", "after"]
    triton_gru.restore(model)
    model(torch.randn(2, 1, 3))
    assert calls == ["before", "after"] * 2


def test_shared_module_is_swapped_once_and_tied_weights_stay_tied():
    shared = nn.GRU(4, 4)
    tied = nn.GRU(4, 4)
    tied.weight_hh_l0 = shared.weight_hh_l0
    model = triton_gru.accelerate(nn.ModuleList([shared, shared, tied]))
    assert model[0] is model[1]
    assert model[2].weight_hh_l0 is model[0].weight_hh_l0
    x = torch.randn(3, 2, 4)
    output_before = model[2](x)[0]
    with torch.no_grad():
        model[0].weight_hh_l0.mul_(2)
    assert not torch.equal(model[2](x)[0], output_before)


def test_other_modules_are_unchanged_and_reported():
    class Custom(nn.GRU):
        pass

    patched = nn.GRU(4, 4)
    patched.forward = lambda x: (x, None)
    model = nn.ModuleDict(
        {
            "custom": Custom(4, 4),
            "parametrized": parametrizations.weight_norm(nn.GRU(4, 4), "weight_hh_l0"),
            "patched": patched,
            "plain": nn.GRU(4, 4),
            "lstm": nn.LSTM(4, 4),
        }
    )
    types = {name: type(module) for name, module in model.items()}
    with pytest.warns(UserWarning) as warned:
        triton_gru.accelerate(model)
    assert len(warned) == 1
    message = str(warned[0].message)
    assert message.startswith("triton_gru.accelerate left these modules unchanged: ")
    assert "'custom' (Custom is a subclass of nn.GRU)" in message
    assert "'parametrized' (ParametrizedGRU is a subclass of nn.GRU: remove its parametrizations first)" in message
    assert "'patched' (its forward has been replaced)" in message
    assert "plain" not in message
    assert "lstm" not in message
    assert warned[0].filename == __file__
    assert type(model["plain"]) is triton_gru.GRU
    del types["plain"]
    assert all(type(model[name]) is kind for name, kind in types.items())


def test_only_accelerate_warns_of_a_model_without_a_gru():
    with pytest.warns(UserWarning, match="accelerate found no nn.GRU or nn.GRUCell in LSTM"):
        model = triton_gru.accelerate(nn.LSTM(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        triton_gru.restore(model)
        triton_gru.accelerate(triton_gru.accelerate(nn.GRU(2, 2)))


@pytest.mark.parametrize("option", ["reset_after=False", "reverse=True"])
def test_restore_leaves_modules_with_options_that_nn_gru_lacks(option):
    name, value = option.split("=")
    ours = triton_gru.GRU(3, 4, **{name: value == "True"})
    model = nn.ModuleDict({"ours": ours, "torch's": triton_gru.GRU(3, 4)})
    with pytest.warns(UserWarning, match=rf"'ours' \({option}, which nn.GRU does not have\)"):
        triton_gru.restore(model)
    assert type(model["ours"]) is triton_gru.GRU
    assert type(model["torch's"]) is nn.GRU


def test_old_style_weight_norm_keeps_working(device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gru = nn.utils.weight_norm(nn.GRU(4, 6), "weight_hh_l0").to(device).eval()
    x = torch.randn(3, 2, 4, device=device)
    set_precision("fp32")
    with torch.no_grad():
        for factor in (1, 3):
            gru.weight_hh_l0_g.mul_(factor)
            expected = gru(x)[0]
            triton_gru.accelerate(gru)
            gru.backend = "block"
            assert_accurate(gru(x)[0], expected, compute_exact(gru, x, None)[0], "fp32", count_summed_products(gru))
            triton_gru.restore(gru)
