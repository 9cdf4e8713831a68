"""Every import of the package points down. `triton_gru/README.md` draws the layers."""

import ast
import graphlib
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "triton_gru"
# A file may import files of its own room, and of rooms in the lines below its line.
LAYERS = """
__init__ __main__
cli
commands
tuning
accuracy convert swap
modules
stand_in stream
launch
call
plan
kernels
reference triton_versions units deprecated _version
"""
DEPTH = {room: depth for depth, line in enumerate(LAYERS.split("\n")) for room in line.split()}


def find_imports() -> dict[str, set[str]]:
    """Return the package's files that each of its files imports, also within functions.

    Files have names like ``"plan.cost"``.
    """
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: set(_find_imported(name, path, files)) for name, path in files.items()}


def _find_imported(name, path, files):
    """Yield the files of the package that the file ``name`` imports. Assert that each exists."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("triton_gru") for alias in node.names), f"{name}: use from ... import"
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("triton_gru")):
            folder = name.split(".")[: -node.level] if node.level else []
            module = [*folder, *(node.module or "").removeprefix("triton_gru").split(".")]
            for alias in node.names:
                # The alias is a file, a folder, or a name in one of them.
                paths = (".".join(filter(None, parts)) for parts in ([*module, alias.name], module))
                matches = [file for path in paths for file in (path, f"{path}.__init__".lstrip(".")) if file in files]
                assert matches, f"{name} imports {alias.name}, and no file has it"
                yield matches[0]


def test_every_room_has_a_layer():
    assert {name.partition(".")[0] for name in find_imports()} == DEPTH.keys()


def test_every_import_points_down():
    room = {name: name.partition(".")[0] for name in find_imports()}
    pointing_up = [
        f"{name} imports {imported}"
        for name, imported_files in find_imports().items()
        for imported in imported_files
        if room[imported] != room[name] and DEPTH[room[imported]] <= DEPTH[room[name]]
    ]
    assert not pointing_up, "\n".join(pointing_up)


def test_no_import_cycles():
    graphlib.TopologicalSorter(find_imports()).prepare()  # raises CycleError with the files' names
