"""Which tests to begin with on a GPU, in order of value: ``pytest tests -m "gpu and first"``.

Each line is the beginning of tests' names and how many of those are taken, drawn the same every time; None for all.
A line is for what the lines before it have left.
"""

import random

FIRST = (
    # What most depends on the GPU: assembly, the hand-over, what a launch does that waits in vain.
    ("kernels/test_isa.py", None),
    ("kernels/test_exchange.py", None),
    ("test_gpu_grid.py::test_a_missing_producer", None),
    ("test_gpu_grid.py::test_an_oversized_grid", None),
    ("test_gpu_grid.py::test_every_handover", 32),
    # Right at the sizes that users have.
    ("test_gpu_grid.py::test_full_sizes", 72),
    ("test_gpu.py::test_full_sizes", 28),
    ("test_gpu_grid.py::test_step_at_full_sizes", 16),
    # What an application does with them.
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
    ("test_gpu_grid.py::test_step_of_more_tiles", None),
    ("kernels/test_limits.py", None),
    ("test_modules.py", 20),
    ("test_swap.py", None),
    ("test_prepared.py", 8),
    ("test_prepared_gru.py", 14),
    ("test_stream.py", 10),
    ("test_watchdog.py", None),
    # Directions, lengths, packed input, resets, reset before.
    ("test_gpu_sequences.py::test_full_sizes", 48),
    ("test_gpu_sequences.py::test_packed_full_sizes", 12),
    ("test_gpu_sequences.py::test_graph_replays", 8),
    ("test_gpu_sequences.py::test_nothing_synchronises", 8),
    ("test_gpu_sequences.py::test_what_a_capture_cannot_do", None),
    ("test_gpu_sequences.py::test_two_threads", None),
    ("test_gpu_sequences.py::test_a_stream_that_is_not", None),
    ("test_gpu_sequences.py::test_autocast", None),
    # Every way to cut, odd shapes, strange numbers.
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
    """Return those of pytest's ``tests`` to begin with, in their order."""
    left, chosen = list(tests), []
    for beginning, number in FIRST:
        found = [each for each in left if each.nodeid.startswith(f"tests/{beginning}")]
        if number is not None and number < len(found):
            taken = set(random.Random(beginning).sample(range(len(found)), number))
            found = [each for i, each in enumerate(found) if i in taken]
        chosen += found
        gone = set(found)
        left = [each for each in left if each not in gone]
    return chosen
