"""Files that a build collects for a wheel: the package's code, py.typed and tuned tables, and no documents."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_wheel_holds_code_and_tables_only(tmp_path):
    """The test runs the step ``build_py`` of a wheel's build on a copy, as setuptools writes into its folder.

    It plants a table, as none is shipped yet.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(ROOT / "triton_gru", tmp_path / "triton_gru", ignore=ignored)
    (package / "plan/tables/data/planted.json").write_text("{}")
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", "lib"]
    subprocess.run(build, cwd=tmp_path, check=True)
    built = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    code = {str(path.relative_to(tmp_path)) for path in package.rglob("*.py")}
    assert built == code | {"triton_gru/py.typed", "triton_gru/plan/tables/data/planted.json"}
