"""Checks of documents: Python blocks run, command lines parse, links resolve, times are those of the CSVs."""

import argparse
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import itertools
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import pytest

import perf.__main__
import tests.ptx.__main__
from perf.report import keep_latest, load
from triton_gru import cli
from triton_gru.commands import tune

ROOT = pathlib.Path(__file__).parent.parent
# NOTES.md is left out: it is a record, and its commands are of its time.
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (".", "triton_gru", "tests", "perf", "scripts")
    for path in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
    if path.name != "NOTES.md"
}
MAX_README_LINES = 180


class Block(NamedTuple):
    """A fenced block of a document, with the line on which its text begins."""

    language: str
    text: str
    line: int


def find_blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order. Assert that each block has an end."""
    blocks, language, start = [], None, 0
    lines = DOCUMENTS[document].splitlines()
    for line_number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if language is None:
            language, start = line[3:].strip(), line_number
        else:
            blocks.append(Block(language, "\n".join(lines[start : line_number - 1]), start + 1))
            language = None
    assert language is None, f"{document}:{start}: the block that starts here has no end"
    return blocks


def strip_code_blocks(document: str) -> str:
    """Return the text of a document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", DOCUMENTS[document], flags=re.MULTILINE | re.DOTALL)


# ---- Python


WITH_PYTHON = [document for document in DOCUMENTS if any(block.language == "python" for block in find_blocks(document))]


def test_readme_has_examples_and_blocks_have_known_languages():
    assert "README.md" in WITH_PYTHON
    languages = {block.language for document in DOCUMENTS for block in find_blocks(document)}
    assert languages == {"python", "sh", "text"}


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # Keras warns itself
@pytest.mark.parametrize("document", WITH_PYTHON)
def test_python_blocks_run(document, kernels_on_cpu, launched, tables, monkeypatch):
    """Run the blocks in order, in one namespace. The text block after a block has to be its output."""
    monkeypatch.chdir(tables)
    for printed, expected in run_blocks(document, lambda text: text.replace('"cuda"', '"cpu"')):
        assert expected is None or printed.rstrip() == expected.text, f"{document}:{expected.line}"
    assert launched.scan_count or document == "perf/README.md"


@pytest.mark.gpu
@pytest.mark.parametrize("document", [document for document in WITH_PYTHON if '"cuda"' in DOCUMENTS[document]])
def test_python_blocks_run_on_a_gpu(document, launched, tables, monkeypatch):
    monkeypatch.chdir(tables)
    for _ in run_blocks(document, str):
        pass
    assert launched.scan_count


def run_blocks(document: str, adapt: Callable[[str], str]) -> Iterator[tuple[str, Block | None]]:
    """Run the Python blocks in one namespace. Yield the output of each, and the text block after it or None.

    ``adapt`` returns the code to run for a block's text.
    """
    blocks = find_blocks(document)
    names = {"__name__": "pasted"}
    for block, following in zip(blocks, [*blocks[1:], None]):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + adapt(block.text), ROOT / document, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, names)
            yield printed.getvalue(), following if following and following.language == "text" else None


# ---- command lines


COMMANDS = [
    pytest.param(line, id=f"{document}:{line_number}")
    for document in DOCUMENTS
    for block in find_blocks(document)
    if block.language == "sh"
    for line_number, line in enumerate(block.text.splitlines(), block.line)
    if line.strip() and not line.startswith("#")
]
# Commands within a sentence, in the README only: in other documents they may be patterns.
COMMANDS += [
    pytest.param(line)
    for line in re.findall(r"`((?:triton-gru|python|pip|scripts/) ?[^`]*)`", strip_code_blocks("README.md"))
]
MARKERS = {"gpu", "first", "alone"}
TOOLS = {"cd", "cp", "git", "tar"}  # their arguments are not checked


class _ParsedArguments(Exception):
    """An exception with the arguments that a parser has accepted."""


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    check_command(words)


def check_command(words: list[str]) -> None:
    """Assert that the program of a command line is known here, and accepts its arguments. Exception: `TOOLS`."""
    program, *arguments = words
    if program in ("python", ".venv/bin/python"):
        check_python(arguments)
    elif program == "triton-gru":
        options = parse_arguments(cli.main, arguments)
        if options.command == "tune":
            tune.refuse_contradictions(options)
    elif program.startswith("scripts/"):
        check_script(program, arguments)
    elif program in ("pip", "pytest"):
        {"pip": check_pip, "pytest": check_pytest}[program](arguments)
    else:
        assert program in TOOLS, f"no check for the arguments of {program!r}: add it to check_command or TOOLS"


def check_python(arguments: list[str]) -> None:
    """Assert that a script, or a module after -m, accepts its arguments. CSVs in perf/ that they name must exist."""
    flag, name, *rest = arguments if arguments[0] == "-m" else ("", *arguments)
    if flag and name == "pip":
        check_pip(rest)
    elif flag and name == "tests.ptx.rehearse":
        check_python(rest)
    elif flag and name == "tests.ptx.hashes":
        assert all(word.endswith(".json") for word in rest)
    elif flag:
        main = {"perf": perf.__main__.main, "tests.ptx": tests.ptx.__main__.main, "triton_gru": cli.main}[name]
        parse_arguments(main, rest, sys_argv=name == "tests.ptx")
        for path in rest:
            assert not path.startswith("perf/") or not path.endswith(".csv") or list(ROOT.glob(path)), path
    else:
        check_script(name, rest)


def check_script(name: str, arguments: list[str]) -> None:
    """Assert that a script of the repository exists and accepts the arguments."""
    path = ROOT / name
    assert path.is_file(), f"{name} does not exist"
    if name == "scripts/test":
        check_pytest(arguments)
        return
    if path.parent.name == "examples":  # tests/test_examples.py checks them
        return
    python = (
        path if path.read_text().startswith('"""') or "python" in path.read_text()[:30] else path.with_suffix(".py")
    )
    if not python.exists():
        assert not arguments, f"{name} takes no arguments"
        return
    loader = importlib.machinery.SourceFileLoader(f"documented_{python.stem}", str(python))
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    with mock.patch.object(sys, "path", [str(python.parent), *sys.path]):
        loader.exec_module(script)
    parse_arguments(script.main, arguments, sys_argv=True)


def parse_arguments(main: Callable, arguments: list[str], sys_argv: bool = False) -> argparse.Namespace:
    """Return the arguments as the parser of ``main`` reads them. Stop ``main`` after parsing.

    ``main`` takes the arguments as a list, or reads them from sys.argv if ``sys_argv`` is set.
    """
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *options) -> None:
        raise _ParsedArguments(parse_args(parser, *options))

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", ["program", *arguments]),
        pytest.raises(_ParsedArguments) as caught,
    ):
        main() if sys_argv else main(arguments)
    return caught.value.args[0]


def check_pip(arguments: list[str]) -> None:
    """Assert that pip's subcommand is known, and that extras in brackets are the package's."""
    assert arguments[0] in ("install", "wheel")
    extras = importlib.metadata.metadata("triton-gru").get_all("Provides-Extra")
    for name in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(name.split(",")) <= set(extras)


def check_pytest(arguments: list[str]) -> None:
    """Assert that pytest's options are known here, that paths exist, and that markers are the project's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="*")
    for flag in ("-m", "-k", "-n", "-p", "--dist"):
        parser.add_argument(flag)
    for flag in ("-q", "-x"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    for path in options.paths:
        assert (ROOT / path.split("::")[0]).exists(), path
    assert set(re.findall(r"\w+", options.m or "")) <= MARKERS | {"and", "or", "not"}


# ---- text


def find_anchors(document: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", strip_code_blocks(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", strip_code_blocks(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), target
        if anchor:
            assert anchor in find_anchors(str(linked.resolve().relative_to(ROOT))), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_is_fenced(document):
    """The other tests check only fenced code, so indented code would stay unchecked."""
    indented = re.findall(r"(?<=\n\n)    (?! )\S.*", strip_code_blocks(document))
    assert not [line for line in indented if not re.match(r"\s+([-*]|\d+\.)", line)]


def test_readme_is_short():
    assert len(DOCUMENTS["README.md"].splitlines()) <= MAX_README_LINES


# Rows of the README's table of times: dtype, packed, H, B, and four times.
TIMES = re.compile(r"^\| (float16|TF32)(, packed)? \| (\d+) \| (\d+)((?: \| [\d.]+){4}) \|$", re.MULTILINE)


def test_readme_times_are_those_of_the_csvs():
    folder = ROOT / "perf/results/NVIDIA-H200/second-light"
    rows = keep_latest(load([folder / f"{name}-NVIDIA-H200.csv" for name in ("heart", "packed")]))
    rows = rows[rows["status"].isin(["ok", "noisy"])].set_index(["precision", "form", "H", "B", "mode", "base"])[
        "p50_ms"
    ]
    table = TIMES.findall(DOCUMENTS["README.md"])
    assert len(table) >= 5  # the pattern finds the table's rows
    for precision, packed, hidden, batch, stated in table:
        case = {"TF32": "fp32 tf32"}.get(precision, precision), packed.strip(", "), int(hidden), int(batch)
        columns = itertools.product(("eager", "graph"), ("torch.nn.GRU", "triton_gru"))
        assert stated.split(" | ")[1:] == [f"{rows[(*case, *column)]:#.3g}" for column in columns], case
