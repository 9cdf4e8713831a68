"""scripts/versions: the versions that it installs, its report of their tests, and its exit status."""

import pathlib
import sys

import pytest

from triton_gru.triton_versions import TESTED_VERSIONS, get_minor_version

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import versions

ROOT = pathlib.Path(__file__).parents[1]
PASSES, FAILS = "def test_passes(): pass", "def test_fails(): raise ValueError"


def test_versions_match_the_tested_versions():
    assert tuple(map(get_minor_version, versions.VERSIONS)) == TESTED_VERSIONS
    assert ", ".join(versions.VERSIONS) in (ROOT / "triton_gru/SUPPORT.md").read_text()


def test_every_part_has_existing_tests():
    for tests in versions.PARTS.values():
        paths = [test.split("::")[0] for test in tests if test.startswith("tests/")]
        assert paths and all((ROOT / path).exists() for path in paths)


@pytest.fixture
def plant_parts(tmp_path, monkeypatch):
    """Return a function that replaces the parts by test files with the given texts. No version is installed."""

    def write_parts(**texts):
        for name, text in texts.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        tests = {name: [str(tmp_path / f"test_{name}.py"), "-c", "/dev/null"] for name in texts}
        monkeypatch.setattr(versions, "PARTS", tests)

    monkeypatch.setattr(versions, "WORKERS", 0)
    monkeypatch.setattr(versions, "install", lambda version: tmp_path / version)
    return write_parts


def test_prints_a_table_and_exits_with_1_on_failures(plant_parts, capfd):
    plant_parts(only=f"{PASSES}\ndef test_too(): pass")
    assert versions.main(["3.6.0", "newest"]) == 0
    printed = capfd.readouterr().out
    assert printed.endswith("\nTriton  only\n3.6.0   2 pass\n3.9.0   2 pass\n")
    assert "== Triton 3.9.0: only" in printed
    plant_parts(first=f"{PASSES}\n{FAILS}", second="")
    assert versions.main(["3.7.1"]) == 1
    printed = capfd.readouterr().out
    cells = "1 fail, 1 pass", "broken: pytest ended with 5"
    assert printed.endswith(f"\nTriton  first           second\n3.7.1   {'  '.join(cells)}\n")


@pytest.mark.parametrize(
    "code, report", [(2, ""), (0, ""), (1, '<t><testsuite tests="1" failures="0" errors="0" skipped="0"/></t>')]
)
def test_run_without_a_report_has_not_passed(code, report):
    result = versions.describe(code, report)
    assert result == f"broken: pytest ended with {code}" and not versions.has_passed(result)


def test_run_that_skipped_all_tests_has_not_passed(plant_parts, capfd):
    plant_parts(only="import pytest\ndef test_skipped(): pytest.skip()")
    assert versions.main(["3.6.0"]) == 1
    assert capfd.readouterr().out.endswith("\n3.6.0   broken: no test ran\n")


def test_tests_import_the_installed_version(plant_parts, tmp_path):
    plant_parts(path=f"import sys\ndef test_path(): assert sys.path.index({str(tmp_path / '3.8.0')!r}) < 3")
    assert versions.main(["3.8.0"]) == 0


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_version_is_installed_once_and_completely(is_interrupted, tmp_path, monkeypatch):
    calls = []

    def run_pip(command, **options):
        """Stand in for pip: make the target folder. The first call is interrupted if ``is_interrupted``."""
        calls.append(command)
        target = pathlib.Path(command[command.index("--target") + 1])
        assert not target.exists()
        target.mkdir(parents=True)
        if is_interrupted and len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions.subprocess, "run", run_pip)
    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            versions.install("3.7.1")
    assert versions.install("3.7.1") == versions.install("3.7.1") == tmp_path / ".venv/triton-3.7.1"
    assert len(calls) == 1 + is_interrupted and all(command[-1] == "triton==3.7.1" for command in calls)
    assert list((tmp_path / ".venv").iterdir()) == [tmp_path / ".venv/triton-3.7.1"]


def test_version_of_the_environment_is_not_installed(monkeypatch):
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: "3.6.0")
    assert versions.install("3.6.0") is None
