"""Runs the tests that depend on Triton with several versions of Triton, and prints a table of their results.

    scripts/versions                  # all supported versions
    scripts/versions newest           # the latest supported version
    scripts/versions 3.7.1 3.9.0      # these versions

All versions share .venv. Each version that is not installed there gets a folder of 1 GB inside .venv.
"""

import argparse
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERSIONS = "3.6.0", "3.7.1", "3.8.0", "3.9.0"
WORKERS = 2  # processes that run tests in parallel
# The tests of each column of the table, as arguments of pytest. They cover kernels of every kind, but not every
# configuration. So they take less than ten minutes on two slow cores, with nothing compiled before.
PARTS = {
    "compiled": [
        "tests/compiled",
        "-k",
        "H200 and (B1] or B64]) and not (H1500 or H2048) or launcher or hop or floors or tuning or reserve",
    ],
    "ptx": ["tests/ptx"],
    "kernels": [
        "tests/kernels",
        "tests/test_triton_versions.py",
        "-k",
        "every_way_to_cut or every_handover or packed_as_lengths or exchange or isa or limits or versions",
    ],
}


def install(version: str) -> pathlib.Path | None:
    """Install a version of Triton, unless it is installed. Return its folder, to put before .venv's packages.

    Return None if the Triton in .venv itself is of that version.

    Raises:
        CalledProcessError: pip cannot install it.
    """
    if version == importlib.metadata.version("triton"):
        return None
    folder = ROOT / ".venv" / f"triton-{version}"
    if not folder.exists():
        print(f"== installing Triton {version} into {folder}", flush=True)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted installation
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, "--no-deps", "--target", str(partial), f"triton=={version}"], check=True)
        partial.rename(folder)
    return folder


def run_tests(folder: pathlib.Path | None, tests: list[str]) -> str:
    """Run tests with the Triton in ``folder`` (None: in .venv). Return their result, such as ``"3 fail, 27 pass"``."""
    paths = [str(folder)] * (folder is not None) + [os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as temporary:
        report = pathlib.Path(temporary) / "report.xml"
        options = ["-q", "-n", str(WORKERS), "--dist", "worksteal", f"--junitxml={report}"]
        code = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, env=environment).returncode
        return describe(code, report.read_text() if report.exists() else "")


def describe(code: int, report: str) -> str:
    """Return the result of a run of pytest as text, from the exit status and the report in JUnit's format.

    The result is broken, not failed, if pytest ended with an error of its own or without a report, or ran no test.
    """
    if code not in (0, 1) or not report:
        return f"broken: pytest ended with {code}"
    suite = xml.fromstring(report).find("testsuite")
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    passed = int(suite.get("tests")) - failed - int(suite.get("skipped"))
    if code == 1 and not failed:
        return "broken: pytest ended with 1"
    if not (failed or passed):
        return "broken: no test ran"
    return f"{failed} fail, {passed} pass" if failed else f"{passed} pass"


def has_passed(result: str) -> bool:
    """Return whether the result, a text of `describe`, has no failed test and is not broken."""
    return result.endswith(" pass") and "fail" not in result


def print_table(results: dict[str, dict[str, str]]) -> None:
    """Print a line for each version of Triton. ``results`` is version -> part -> result."""
    rows = [["Triton", *PARTS], *([version, *parts.values()] for version, parts in results.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all tests pass with all versions, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/versions", description=__doc__.splitlines()[0])
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help=f"of Triton, or newest (default: {' '.join(VERSIONS)})"
    )
    versions = parser.parse_args(arguments).versions or VERSIONS
    results = {}
    for version in (VERSIONS[-1] if version == "newest" else version for version in versions):
        folder = install(version)
        results[version] = {}
        for part, tests in PARTS.items():
            print(f"== Triton {version}: {part}", flush=True)
            start = time.monotonic()
            results[version][part] = run_tests(folder, tests)
            print(f"== {results[version][part]}, {time.monotonic() - start:.0f} s", flush=True)
    print()
    print_table(results)
    return 0 if all(has_passed(result) for parts in results.values() for result in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
