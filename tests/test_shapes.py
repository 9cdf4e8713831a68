"""Problems of a model and of a recorded run. Recording must not disturb the run."""

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

from .calls import make_gru
from .planted import PROBLEM


def test_shapes_of_a_model():
    model = nn.ModuleList([nn.GRU(8, 16, 2, bidirectional=True), triton_gru.GRU(4, 5, reset_after=False)])
    model.append(nn.GRUCell(3, 4, dtype=torch.bfloat16))
    model.append(nn.GRU(3, 4, dtype=torch.float64))
    model.append(nn.LSTM(3, 4))
    problems = triton_gru.shapes_of(model, batch_sizes=(1, 8), steps=(100,))
    assert [(problem.hidden_size, problem.batch_size, problem.steps) for problem in problems] == [
        (16, 1, 100), (16, 8, 100), (5, 1, 100), (5, 8, 100), (4, 1, 1), (4, 8, 1),
    ]  # fmt: skip
    assert (problems[0].num_layers, problems[0].directions, problems[0].precision) == (2, 2, "tf32")
    assert not problems[2].reset_after and problems[4].dtype == torch.bfloat16
    assert {problem.dtype for problem in triton_gru.shapes_of(model, dtype=torch.float16)} == {torch.float16}


def test_shapes_of_a_run():
    bidirectional_gru = nn.GRU(8, 16, bidirectional=True, batch_first=True).eval()
    our_gru, cell = triton_gru.GRU(4, 5).eval(), nn.GRUCell(3, 4)
    with triton_gru.record_shapes() as shapes, torch.no_grad():
        for _ in range(3):
            our_gru(torch.randn(100, 3, 4))
        bidirectional_gru(torch.randn(2, 10, 8))
        bidirectional_gru(torch.randn(10, 8))
        our_gru(torch.randn(7, 3, 4), lengths=torch.tensor([7, 1, 2]))
        our_gru(torch.randn(7, 3, 4), resets=torch.zeros(7, 3, dtype=torch.bool))
        our_gru(nn.utils.rnn.pack_padded_sequence(torch.randn(7, 3, 4), torch.tensor([7, 2, 1])))
        cell(torch.randn(5, 3))
        with torch.autocast("cpu", torch.bfloat16):
            cell(torch.randn(5, 3))
        our_gru.double()(torch.randn(2, 3, 4).double())
    our_gru.float()(torch.randn(100, 3, 4))  # no longer watched
    assert nn.GRU.__call__ is triton_gru.GRUCell.__call__ is nn.Module.__call__
    sizes = [
        (problem.hidden_size, problem.batch_size, problem.steps, problem.layout, str(problem.dtype)[6:])
        for problem in shapes
    ]
    assert sizes[0] == (5, 3, 128, "dense", "float32")
    assert sorted(sizes[1:]) == sorted([
        (16, 2, 16, "dense", "float32"), (16, 1, 16, "dense", "float32"), (5, 3, 8, "lengths", "float32"),
        (5, 3, 8, "dense", "float32"), (5, 3, 8, "packed", "float32"), (4, 5, 1, "dense", "float32"),
        (4, 5, 1, "dense", "bfloat16"),
    ])  # fmt: skip
    assert len(shapes) == 8 and all(isinstance(problem, Problem) for problem in shapes)
    ((problem_called_most, calls),) = shapes.seen.most_common(1)
    assert (problem_called_most.hidden_size, problem_called_most.steps, calls) == (5, 100, 3)
    assert sorted(problem.steps for problem in shapes.seen) == [1, 1, 7, 7, 7, 10, 10, 100]
    bidirectional_gru.train()
    with triton_gru.record_shapes() as shapes:
        bidirectional_gru(torch.randn(2, 10, 8))
    assert len(shapes) == 0


class Masked(nn.GRU):
    """A GRU whose forward takes other arguments and calls `nn.GRU.forward`."""

    def forward(self, input, mask):
        return super().forward(input * mask)


def make_unrecorded_calls():
    """Return the name and the function of each call that is traced, transformed, or of tensors without plain data."""
    steps, batch = torch.export.Dim("steps", min=2, max=64), torch.export.Dim("batch", min=2, max=64)
    dynamic = {"dynamic_shapes": {"input": {0: steps, 1: batch}}}
    x = torch.randn(3, 2, 4)
    return {
        "trace": lambda gru: torch.jit.trace(gru, x, check_trace=False),
        "dynamic export": lambda gru: torch.export.export(gru, (x,), **dynamic),
        "strict export": lambda gru: torch.export.export(gru, (x,), **dynamic, strict=True),
        "compile": lambda gru: torch.compile(gru, backend="eager", dynamic=True)(x),
        "fake tensors": lambda gru: call_with_fake_tensors(gru, x),
        "meta": lambda gru: gru.to("meta")(x.to("meta")),
        "torch.func": lambda gru: torch.func.grad(lambda x: gru(x)[0].sum())(x),
        "subclass": lambda gru: gru(x.as_subclass(type("Sub", (torch.Tensor,), {}))),
    }


def call_with_fake_tensors(gru, x):
    """Call ``gru`` with a fake tensor of the shape of ``x``."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        gru(mode.from_tensor(x))


@pytest.mark.parametrize("name", make_unrecorded_calls())
def test_traced_and_unusual_calls_are_not_recorded(name, old_gpu_on_cpu):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers of torch warn
        with triton_gru.record_shapes() as shapes:
            make_unrecorded_calls()[name](triton_gru.GRU(4, 6).eval())
        assert len(shapes) == 0


def test_nested_recorders_and_subclasses():
    gru, masked = nn.GRU(4, 6).eval(), Masked(4, 6).eval()
    with torch.no_grad(), triton_gru.record_shapes() as outer:
        with triton_gru.record_shapes() as inner:
            gru(torch.randn(3, 2, 4))
            masked(torch.randn(3, 2, 4), torch.ones(3, 2, 1))
            with pytest.raises(ValueError, match="2D or 3D"):
                gru(torch.randn(4))
        gru(torch.randn(9, 2, 4))
    assert [problem.steps for problem in inner] == [4] and [problem.steps for problem in outer] == [16, 4]
    assert nn.GRU.__call__ is nn.Module.__call__


def test_frames_of_a_stream_are_recorded_once(kernels_on_cpu):
    """`step` serves frames in the dtype of the stream. Otherwise the module serves them, and its call is recorded."""
    run_frame, frame = triton_gru.Stream.__call__, torch.randn(3, 4)
    gru, bfloat16_gru = (make_gru(4, 5, precision, "cpu", "auto", batch_first=True) for precision in ("fp32", "bf16"))
    stream, bfloat16_stream = gru.stream(3), bfloat16_gru.stream(3)
    with triton_gru.record_shapes() as outer:
        stream(frame)
        with triton_gru.record_shapes() as inner:
            stream(frame)
            with torch.autocast("cpu", torch.bfloat16):
                stream(frame)
                bfloat16_stream(frame)
                bfloat16_problem = stream.plan(frame).problem
            gru.backend = "torch"
            stream(frame)
    problem = stream.plan(frame).problem
    assert (problem.steps, problem.batch_size, problem.layout) == (1, 3, "dense")
    assert inner.seen == {problem: 2, bfloat16_problem: 2} and outer.seen == {problem: 3, bfloat16_problem: 2}
    assert triton_gru.Stream.__call__ is run_frame


@pytest.mark.parametrize(
    "arguments, hook, batches",
    [
        ((torch.ones(3, 2, 4), 1, 2, 3, 4), lambda module, args: (args[0],), [2]),
        ((torch.ones(()),), lambda module, args: (torch.ones(3, 2, 4),), []),
        ((torch.ones(6, 4),), lambda module, args: (args[0].view(3, 2, 4),), []),
    ],
    ids=["more arguments", "another input", "another view"],
)
def test_call_is_recorded_only_if_a_hook_keeps_its_input(arguments, hook, batches):
    """The first hook drops only other arguments, so the call is recorded."""
    gru = nn.GRU(4, 6).eval()
    gru.register_forward_pre_hook(hook)
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        assert gru(*arguments)[0].shape == (3, 2, 6)
    assert [problem.batch_size for problem in shapes] == batches


def make_recording() -> Recorded:
    """Return a recording of `PROBLEM`, and of problems that differ from it, with different numbers of calls."""
    recorded = Recorded()
    recorded.count_call(PROBLEM, 3)
    for index, fields in enumerate([
        {"steps": 7}, {"steps": 7, "batch_size": 9}, {"dtype": torch.float32, "precision": "tf32"},
        {"dtype": torch.float32}, {"dtype": torch.bfloat16, "num_layers": 2}, {"bidirectional": True},
        {"layout": "packed"}, {"layout": "lengths", "resets": True}, {"reset_after": False}, {"reverse": True},
    ]):  # fmt: skip
        recorded.count_call(dataclasses.replace(PROBLEM, **fields), 1 + index * index)
    return recorded


def test_saved_recording_loads_unchanged(tmp_path):
    recorded = make_recording()
    recorded.save(tmp_path / "shapes.json")
    loaded = Recorded.load(tmp_path / "shapes.json")
    assert loaded.seen == recorded.seen and list(loaded.seen) == list(recorded.seen)
    assert list(loaded) == list(recorded)
    loaded.save(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_text() == (tmp_path / "shapes.json").read_text()


def test_recorded_run_is_saved_with_its_calls(tmp_path):
    gru = nn.GRU(4, 6).eval()
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        for steps in (3, 9, 9):
            gru(torch.randn(steps, 2, 4))
        shapes.save(tmp_path / "shapes.json")
    written = json.loads((tmp_path / "shapes.json").read_text())["problems"]
    assert [(entry["steps"], entry["calls"]) for entry in written] == [(3, 1), (9, 2)]
    assert [problem.steps for problem in Recorded.load(tmp_path / "shapes.json")] == [16, 4]


def test_failed_save_leaves_the_old_recording(tmp_path, monkeypatch):
    path = tmp_path / "shapes.json"
    make_recording().save(path)
    text_before = path.read_text()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        Recorded().save(path)
    assert path.read_text() == text_before and [path.name for path in tmp_path.iterdir()] == ["shapes.json"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda recording: recording.update(schema=2), "it is not of schema 1"),
        (lambda recording: recording.update(schema=True), "it is not of schema 1"),
        (lambda recording: recording.pop("problems"), "it has no list of problems"),
        (lambda recording: recording.update(problems={}), "it has no list of problems"),
        (
            lambda recording: recording["problems"].insert(1, 5),
            "problem 1: it must have exactly the fields steps, batch_size",
        ),
        (lambda recording: recording["problems"][2].pop("calls"), "problem 2: it must have exactly"),
        (lambda recording: recording["problems"][2].update(more=1), "problem 2: it must have exactly"),
        (lambda recording: recording["problems"][0].update(steps=0), "problem 0: steps may not be '0'"),
        (lambda recording: recording["problems"][0].update(steps=True), "steps may not be 'True'"),
        (lambda recording: recording["problems"][0].update(batch_size=2.0), "batch_size may not be '2.0'"),
        (lambda recording: recording["problems"][0].update(hidden_size=1 << 40), "hidden_size may not be"),
        (lambda recording: recording["problems"][0].update(input_size="5"), "input_size may not be '5'"),
        (lambda recording: recording["problems"][0].update(calls=-1), "calls may not be '-1'"),
        (lambda recording: recording["problems"][0].update(dtype="float64"), "dtype may not be 'float64'"),
        (lambda recording: recording["problems"][0].update(dtype=["float16"]), "dtype may not be"),
        (lambda recording: recording["problems"][0].update(bidirectional=1), "bidirectional may not be '1'"),
        (lambda recording: recording["problems"][0].update(layout="ragged"), "layout may not be 'ragged'"),
        (lambda recording: recording["problems"][0].update(precision=None), "precision may not be 'None'"),
    ],
)
def test_invalid_recording_is_refused(change, reason, tmp_path):
    path = tmp_path / "shapes.json"
    make_recording().save(path)
    recording = json.loads(path.read_text())
    change(recording)
    path.write_text(json.dumps(recording))
    with pytest.raises(ValueError) as error:
        Recorded.load(path)
    assert str(error.value).startswith(f"{path} was not written by record_shapes' save(): ")
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100000, "null"])
def test_other_text_is_refused(text, tmp_path):
    (tmp_path / "shapes.json").write_text(text)
    with pytest.raises(ValueError, match=r"shapes\.json was not written by record_shapes' save\(\): it is no"):
        Recorded.load(tmp_path / "shapes.json")


def test_pipe_and_missing_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="it is not a regular file"):
        Recorded.load(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        Recorded.load(tmp_path / "none")
