"""Tests that run kernels do so on the CPU, where compiled kernels are executed (tests/ptx), and (marked gpu) on a GPU.

Every run draws new random numbers and schedules. A run that fails prints its seed: with TESTS_SEED set to that, the
next run draws the same.
"""

import contextlib
import os
import secrets
import zlib

import pytest
import torch

from triton_gru.launch import call_cache, execute
from triton_gru.launch.kernel_launch import Launch, Product
from triton_gru.plan import device as devices
from triton_gru.plan import planner
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.tables import lookup

from . import gpu_first
from .launches import Launches
from .planted import T4
from .ptx.device import emulate_gpu


def pytest_configure(config):
    os.environ.setdefault("TESTS_SEED", str(secrets.randbelow(1 << 32)))  # before pytest-xdist starts its workers
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for memory that is `poison_memory`
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
        # On a GPU that processes share, a launch also waits while others have their turn.
        os.environ.setdefault("TRITON_GRU_TIMEOUT", "60")


@pytest.fixture(autouse=True)
def _seeded(request):
    torch.manual_seed(zlib.crc32(f"{os.environ['TESTS_SEED']} {request.node.nodeid}".encode()))


def pytest_terminal_summary(terminalreporter, exitstatus):
    if exitstatus != 0:
        terminalreporter.write_line(f"to draw the same random numbers again: TESTS_SEED={os.environ['TESTS_SEED']}")


@pytest.fixture
def alone():
    """For tests that look at times: processes beside this one would be in them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("it measures times: run it without -n")


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Yield the name of the torch device whose tensors kernels run on."""
    if request.param == "gpu":
        assert torch.cuda.is_available(), "tests marked gpu were asked for and there is none"
        yield "cuda"
    else:
        request.getfixturevalue("kernels_on_cpu")
        yield "cpu"


@pytest.fixture
def kernels_on_cpu(request):
    """Let kernels run on CPU tensors, as compiled for an H200; yield the emulated GPU."""
    with emulate_gpu(KNOWN_DEVICES["H200"], seed_of(request.node)) as emulated:
        yield emulated


@pytest.fixture
def old_gpu_on_cpu(monkeypatch):
    """Let CPU tensors lie on a GPU without kernels: torch's own GRU serves calls that are planned for a GPU."""
    monkeypatch.setattr(devices, "emulated_device", T4)


@pytest.fixture
def gpu_of_backend(backend, request):
    """Let CPU tensors lie on a GPU: an old one where the test's parameter ``backend`` is ``"auto"``."""
    request.getfixturevalue("old_gpu_on_cpu" if backend == "auto" else "kernels_on_cpu")


def seed_of(test) -> int:
    """Return what a test's schedules are drawn from: the same again with the same TESTS_SEED."""
    return zlib.crc32(f"{os.environ['TESTS_SEED']} schedules of {test.nodeid}".encode())


@pytest.fixture
def launched(monkeypatch) -> Launches:
    """Records every kernel the library starts, so that a test can tell a kernel from a fallback."""
    names = Launches()
    start = execute.start

    def record(launches):
        def named():
            for each in launches:
                names.append("cublas" if isinstance(each, Product) else each.kernel.__name__)
                yield each

        start(named())

    monkeypatch.setattr(execute, "start", record)
    prepared = Launch.make_starter

    def recording(self):
        again = prepared(self)
        return lambda *args: names.append(self.kernel.__name__) or again(*args)

    monkeypatch.setattr(Launch, "make_starter", recording)
    return names


@contextlib.contextmanager
def poison_memory():
    """Memory allocated inside is filled with NaN, so that what a kernel does not write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture
def matmul():
    """Yield torch's settings of matrix products, and put them back afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_fp16_accumulation
    yield matmul
    matmul.allow_tf32 = False
    matmul.fp32_precision, matmul.allow_fp16_accumulation = before


@pytest.fixture
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def few_calls(monkeypatch):
    """The perf suite times next to nothing."""
    monkeypatch.setattr("perf.case.INPUT_COUNT", 2)
    monkeypatch.setattr("triton_gru.tuning.timing.WARMUP", 1)
    monkeypatch.setattr("triton_gru.tuning.timing.LEAST_ROUNDS", 3)


@pytest.fixture
def plain_inductor():
    """Inductor makes code that compiles in half the time: around the operator there is little to compute."""
    options = {
        "compile_threads": 1, "cpp.vec_isa_ok": False, "cpp.threads": 1, "aot_inductor.precompile_headers": False,
        "aot_inductor.debug_compile": True, "aot_inductor.debug_symbols": False,
    }  # fmt: skip
    from torch._inductor import config

    with config.patch(options):
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_tables_but_the_tests_own(tmp_path_factory):
    """What whoever runs the tests has tuned is none of their concern."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tmp_path_factory.mktemp("tables")))
        yield


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """An empty folder for tuned tables, which nobody remembers afterwards."""
    monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tmp_path))
    _forget_tables()
    yield tmp_path
    _forget_tables()


def _forget_tables():
    lookup.clear_table_cache()
    planner.clear_plan_cache()
    call_cache.clear_call_cache()


@pytest.fixture(autouse=True)
def _precision_restored():
    before = torch.backends.cudnn.rnn.fp32_precision
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Put those to begin with on a GPU first, and mark them."""
    on_a_gpu = [each for each in items if each.get_closest_marker("gpu")]
    for each in on_a_gpu:
        # Some tests do what torch warns of there: weights that are copied for a call, graphs of nothing.
        each.add_marker(pytest.mark.filterwarnings("default"))
        if "alone" in each.fixturenames:
            each.add_marker("alone")
    first = gpu_first.choose(on_a_gpu)
    for each in first:
        each.add_marker("first")
    known = set(first)
    items[:] = first + [each for each in items if each not in known]
