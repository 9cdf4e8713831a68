"""The problems of a model, and of a run that was recorded, which nothing of the recorder may disturb."""

import dataclasses
import json
import os
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import triton_gru
from triton_gru.plan.problem import Problem
from triton_gru.tuning.shapes import Recorded

from .planted import PROBLEM


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


def recording() -> Recorded:
    """Of problems that differ in everything a problem can, called unequally often."""
    recorded = Recorded()
    recorded.count_call(PROBLEM, 3)
    for number, change in enumerate([
        {"steps": 7}, {"steps": 7, "batch_size": 9}, {"dtype": torch.float32, "precision": "tf32"},
        {"dtype": torch.float32}, {"dtype": torch.bfloat16, "num_layers": 2}, {"bidirectional": True},
        {"layout": "packed"}, {"layout": "lengths", "resets": True}, {"reset_after": False}, {"reverse": True},
    ]):  # fmt: skip
        recorded.count_call(dataclasses.replace(PROBLEM, **change), 1 + number * number)
    return recorded


def test_a_recording_comes_back_as_it_was(tmp_path):
    recorded = recording()
    recorded.save(tmp_path / "shapes.json")
    loaded = Recorded.load(tmp_path / "shapes.json")
    assert loaded.seen == recorded.seen and list(loaded.seen) == list(recorded.seen)
    assert list(loaded) == list(recorded)
    loaded.save(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_text() == (tmp_path / "shapes.json").read_text()


def test_a_run_is_saved(tmp_path):
    gru = nn.GRU(4, 6).eval()
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        for steps in (3, 9, 9):
            gru(torch.randn(steps, 2, 4))
        shapes.save(tmp_path / "shapes.json")
    written = json.loads((tmp_path / "shapes.json").read_text())["problems"]
    assert [(each["steps"], each["calls"]) for each in written] == [(3, 1), (9, 2)]
    assert [each.steps for each in Recorded.load(tmp_path / "shapes.json")] == [16, 4]


def test_a_recording_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "shapes.json"
    recording().save(path)
    before = path.read_text()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        Recorded().save(path)
    assert path.read_text() == before and [each.name for each in tmp_path.iterdir()] == ["shapes.json"]


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda whole: whole.update(schema=2), "it is not of schema 1"),
        (lambda whole: whole.update(schema=True), "it is not of schema 1"),
        (lambda whole: whole.pop("problems"), "it has no list of problems"),
        (lambda whole: whole.update(problems={}), "it has no list of problems"),
        (lambda whole: whole["problems"].insert(1, 5), "problem 1: it has to have steps, batch_size"),
        (lambda whole: whole["problems"][2].pop("calls"), "problem 2: it has to have"),
        (lambda whole: whole["problems"][2].update(more=1), "problem 2: it has to have"),
        (lambda whole: whole["problems"][0].update(steps=0), "problem 0: steps may not be '0'"),
        (lambda whole: whole["problems"][0].update(steps=True), "steps may not be 'True'"),
        (lambda whole: whole["problems"][0].update(batch_size=2.0), "batch_size may not be '2.0'"),
        (lambda whole: whole["problems"][0].update(hidden_size=1 << 40), "hidden_size may not be"),
        (lambda whole: whole["problems"][0].update(input_size="5"), "input_size may not be '5'"),
        (lambda whole: whole["problems"][0].update(calls=-1), "calls may not be '-1'"),
        (lambda whole: whole["problems"][0].update(dtype="float64"), "dtype may not be 'float64'"),
        (lambda whole: whole["problems"][0].update(dtype=["float16"]), "dtype may not be"),
        (lambda whole: whole["problems"][0].update(bidirectional=1), "bidirectional may not be '1'"),
        (lambda whole: whole["problems"][0].update(layout="ragged"), "layout may not be 'ragged'"),
        (lambda whole: whole["problems"][0].update(precision=None), "precision may not be 'None'"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(change, why, tmp_path):
    path = tmp_path / "shapes.json"
    recording().save(path)
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError) as refused:
        Recorded.load(path)
    assert str(refused.value).startswith(f"{path} is no file that record_shapes' save() wrote: ")
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100000, "null"])
def test_a_text_that_is_no_recording_is_refused(text, tmp_path):
    (tmp_path / "shapes.json").write_text(text)
    with pytest.raises(ValueError, match=r"shapes\.json is no file that record_shapes' save\(\) wrote: it is no"):
        Recorded.load(tmp_path / "shapes.json")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="it is no file"):
        Recorded.load(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        Recorded.load(tmp_path / "none")
