"""Fixtures and markers. Kernels run on the CPU, which executes their PTX (tests/ptx), and on a GPU (marked gpu).

Every run draws new random numbers and schedules. A run that fails prints its seed. Set TESTS_SEED to this seed to draw
the same numbers again.
"""

import contextlib
import os
import secrets
import zlib

import pytest
import torch

from triton_gru.launch import execute
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
    """Set the environment variables that all test processes share. If there are several, limit torch's threads."""
    os.environ.setdefault("TESTS_SEED", str(secrets.randbelow(1 << 32)))  # before pytest-xdist starts its workers
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # `poison_memory` needs it
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
        # On a GPU that processes share, a launch also waits while other processes run.
        os.environ.setdefault("TRITON_GRU_TIMEOUT", "60")


@pytest.fixture(autouse=True)
def _seeded(request):
    """Set torch's random seed for each test, from TESTS_SEED and the test's id."""
    torch.manual_seed(zlib.crc32(f"{os.environ['TESTS_SEED']} {request.node.nodeid}".encode()))


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Print the seed of a run that failed."""
    if exitstatus != 0:
        terminalreporter.write_line(f"to draw the same random numbers again: TESTS_SEED={os.environ['TESTS_SEED']}")


@pytest.fixture
def alone():
    """Skip a test that measures times if other test processes run too: they would change the times."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("this test measures times: run it without -n")


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Yield "cpu", on which kernels are emulated, or "cuda": the torch device of the test's tensors."""
    if request.param == "gpu":
        assert torch.cuda.is_available(), "this test needs a GPU, and torch finds none: run with -m 'not gpu'"
        yield "cuda"
    else:
        request.getfixturevalue("kernels_on_cpu")
        yield "cpu"


@pytest.fixture
def kernels_on_cpu(request):
    """Run kernels on CPU tensors, compiled for an H200. Yield the emulated GPU."""
    with emulate_gpu(KNOWN_DEVICES["H200"], seed_of(request.node)) as emulated:
        yield emulated


@pytest.fixture
def old_gpu_on_cpu(monkeypatch):
    """Plan calls on CPU tensors for a GPU that no kernel runs on, so that nn.GRU serves them."""
    monkeypatch.setattr(devices, "emulated_device", T4)


@pytest.fixture
def gpu_of_backend(backend, request):
    """Emulate an H200, or a GPU that no kernel runs on if the test's parameter ``backend`` is "auto"."""
    request.getfixturevalue("old_gpu_on_cpu" if backend == "auto" else "kernels_on_cpu")


def seed_of(test) -> int:
    """Return the seed of the order in which emulated programs run, from TESTS_SEED and the test's id."""
    return zlib.crc32(f"{os.environ['TESTS_SEED']} schedules of {test.nodeid}".encode())


@pytest.fixture
def launched(monkeypatch) -> Launches:
    """Record the name of every kernel that the library starts, so that a test can tell a kernel from a fallback.

    A product by cuBLAS is recorded as "cublas". Exception: products of prepared calls are not recorded.
    """
    names = Launches()
    start = execute.start

    def record(launches):
        """Start the launches as `execute.start` does, and note the name of each."""

        def record_each():
            for launch in launches:
                names.append("cublas" if isinstance(launch, Product) else launch.kernel.__name__)
                yield launch

        start(record_each())

    monkeypatch.setattr(execute, "start", record)
    make_starter = Launch.make_starter

    def make_recording_starter(self):
        run = make_starter(self)
        return lambda *args: names.append(self.kernel.__name__) or run(*args)

    monkeypatch.setattr(Launch, "make_starter", make_recording_starter)
    return names


@contextlib.contextmanager
def poison_memory():
    """Fill memory that is allocated inside the context with NaN, to show elements that a kernel does not write."""
    were_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were_deterministic)


@pytest.fixture
def matmul():
    """Yield torch's settings of matrix products, and restore them afterwards."""
    matmul = torch.backends.cuda.matmul
    settings_before = matmul.fp32_precision, matmul.allow_fp16_accumulation
    yield matmul
    matmul.allow_tf32 = False
    matmul.fp32_precision, matmul.allow_fp16_accumulation = settings_before


@pytest.fixture
def inference_mode():
    """Run the test in torch.inference_mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def few_calls(monkeypatch):
    """Let the perf suite use two inputs, a warm-up call with each, and at least three rounds, for a quick test."""
    monkeypatch.setattr("perf.case.INPUT_COUNT", 2)
    monkeypatch.setattr("triton_gru.tuning.timing.WARMUP", 1)
    monkeypatch.setattr("triton_gru.tuning.timing.LEAST_ROUNDS", 3)


@pytest.fixture
def plain_inductor():
    """Let Inductor generate plain code, which compiles in half the time. Little is computed around the operator."""
    options = {
        "compile_threads": 1, "cpp.vec_isa_ok": False, "cpp.threads": 1, "aot_inductor.precompile_headers": False,
        "aot_inductor.debug_compile": True, "aot_inductor.debug_symbols": False,
    }  # fmt: skip
    from torch._inductor import config

    with config.patch(options):
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_tables_of_the_user(tmp_path_factory):
    """Hide the tables that the user has tuned."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tmp_path_factory.mktemp("tables")))
        yield


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Yield an empty folder for tuned tables. Clear the caches of tables, plans and calls before and after."""
    monkeypatch.setenv("TRITON_GRU_CONFIG_DIR", str(tmp_path))
    _clear_caches()
    yield tmp_path
    _clear_caches()


def _clear_caches():
    """Clear the caches of tables, plans and prepared calls."""
    lookup.clear_table_cache()
    planner.clear_plan_cache()


@pytest.fixture(autouse=True)
def _restore_precision():
    """Restore torch's fp32 precision of RNNs after each test."""
    precision_before = torch.backends.cudnn.rnn.fp32_precision
    yield
    torch.backends.cudnn.rnn.fp32_precision = precision_before


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Move the tests of tests/gpu_first.py to the front, and mark them ``first``.

    Mark the GPU tests that use the fixture `alone` with the marker ``alone``.
    """
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    for item in gpu_tests:
        # torch warns of some tests on a GPU: weights that are copied for a call, empty graphs.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if "alone" in item.fixturenames:
            item.add_marker("alone")
    first_tests = gpu_first.choose(gpu_tests)
    for item in first_tests:
        item.add_marker("first")
    moved = set(first_tests)
    items[:] = first_tests + [item for item in items if item not in moved]
