"""The tests that run first on a GPU, in order of value: ``pytest tests -m "gpu and first"``.

Each line of `FIRST` has a prefix of test ids, and the maximum number of tests taken with this prefix (None: all). A
line takes only tests that no line before it took. Every run draws the same tests.
"""

import random

FIRST = (
    # Most dependent on the GPU: assembly, the hand-over, launches that time out.
    ("kernels/test_isa.py", None),
    ("kernels/test_exchange.py", None),
    ("test_gpu_grid.py::test_missing_producer", None),
    ("test_gpu_grid.py::test_oversized_grid", None),
    ("test_gpu_grid.py::test_every_handover", 32),
    # Right results at the sizes that users have.
    ("test_gpu_grid.py::test_full_sizes", 72),
    ("test_gpu.py::test_full_sizes", 28),
    ("test_gpu_grid.py::test_step_at_full_sizes", 16),
    # Use in an application: graphs, streams, memory.
    ("test_gpu.py::test_graph_replays", 12),
    ("test_gpu.py::test_nothing_synchronises", None),
    ("test_gpu.py::test_two_streams", None),
    ("test_gpu.py::test_beside_a_kernel", None),
    ("test_gpu.py::test_reduce_overhead", None),
    ("test_gpu.py::test_fewer_multiprocessors", None),
    ("test_gpu.py::test_memory", None),
    ("test_gpu_grid.py::test_ten_thousand_replays", None),
    ("test_gpu_grid.py::test_results_do_not_depend_on_the_chunks", None),
    ("test_gpu_grid.py::test_nan", 8),
    ("test_gpu.py::test_offsets", None),
    ("test_gpu_grid.py::test_offsets", 1),
    ("test_gpu_grid.py::test_step_of_more_batch_tiles", None),
    ("kernels/test_limits.py", None),
    ("test_modules.py", 20),
    ("test_swap.py", None),
    ("test_prepared.py", 8),
    ("test_prepared_gru.py", 14),
    ("test_stream.py", 10),
    ("test_watchdog.py", None),
    # Directions, lengths, packed input, resets, reset_after=False.
    ("test_gpu_sequences.py::test_full_sizes", 48),
    ("test_gpu_sequences.py::test_packed_full_sizes", 12),
    ("test_gpu_sequences.py::test_graph_replays", 8),
    ("test_gpu_sequences.py::test_nothing_synchronises", 8),
    ("test_gpu_sequences.py::test_capture_refuses", None),
    ("test_gpu_sequences.py::test_two_threads", None),
    ("test_gpu_sequences.py::test_other_stream", None),
    ("test_gpu_sequences.py::test_autocast", None),
    # Every kind of cut, odd shapes, unusual numbers.
    ("kernels/test_block.py", 20),
    ("kernels/test_grid.py::test_agrees", 12),
    ("kernels/test_grid.py::test_every", 16),
    ("kernels/test_step.py", 12),
    ("kernels/test_scans.py", 32),
    ("kernels/test_sequences.py", 19),
    ("test_fallbacks.py", 6),
    ("kernels/test_matrix.py", 18),
)


def choose(tests: list) -> list:
    """Return those of pytest's ``tests`` that `FIRST` takes, in the order of `FIRST`."""
    remaining, chosen = list(tests), []
    for prefix, max_tests in FIRST:
        matching = [test for test in remaining if test.nodeid.startswith(f"tests/{prefix}")]
        if max_tests is not None and max_tests < len(matching):
            drawn = set(random.Random(prefix).sample(range(len(matching)), max_tests))
            matching = [test for i, test in enumerate(matching) if i in drawn]
        chosen += matching
        taken = set(matching)
        remaining = [test for test in remaining if test not in taken]
    return chosen
