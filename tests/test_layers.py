"""Every import of the package points down: `triton_gru/README.md` draws the layers."""

import ast
import graphlib
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "triton_gru"
# Whoever is in a line may import what is in the lines below it, and what is in a room with it.
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


def imports() -> dict[str, set[str]]:
    """Return, of each file of the package, those that it imports, wherever in it: names like ``"plan.cost"``."""
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: set(_imported(name, path, files)) for name, path in files.items()}


def _imported(name, path, files):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(each.name.startswith("triton_gru") for each in node.names), f"{name}: say from ... import"
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("triton_gru")):
            folder = name.split(".")[: -node.level] if node.level else []
            module = [*folder, *(node.module or "").removeprefix("triton_gru").split(".")]
            for alias in node.names:
                # A file, a folder, or something in one of them.
                paths = (".".join(filter(None, each)) for each in ([*module, alias.name], module))
                found = [each for path in paths for each in (path, f"{path}.__init__".lstrip(".")) if each in files]
                assert found, f"{name} imports {alias.name}, which is nowhere"
                yield found[0]


def test_every_room_has_a_layer():
    assert {name.partition(".")[0] for name in imports()} == DEPTH.keys()


def test_every_arrow_points_down():
    room = {name: name.partition(".")[0] for name in imports()}
    up = [
        f"{name} imports {each}"
        for name, arrows in imports().items()
        for each in arrows
        if room[each] != room[name] and DEPTH[room[each]] <= DEPTH[room[name]]
    ]
    assert not up, "\n".join(up)


def test_no_file_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(imports()).prepare()  # raises CycleError, which names the files
