"""Holds the rules of "How we write" (tests/README.md) that a program can check.

    python tests/test_prose.py triton_gru/plan perf/case.py

prints what breaks a rule in these files and folders.
"""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("triton_gru", "perf", "scripts", "tests")
# Files that quote words of the lists below.
EXEMPT = ("tests/test_deprecated.py", "tests/test_prose.py")

# A function's docstring starts with one of these. Add a verb that is missing.
VERBS = """
    Accept Add Allow Allocate Answer Append Apply Arrange Ask Assert Assign Begin Bind Block Build Bring Call Cast Check
    Choose Clear Close Combine Compare Compile Compute Construct Convert Copy Count Create Decide Decode Define Delete
    Describe Disable Divide Do Download Draw Drop Emulate Enable End Ensure Estimate Exchange Execute Expect Export
    Extract Fail Fill Find Finish Fit Flatten Force Forget Format Generate Get Give Group Hand Hash Hide Ignore Import
    Insert Install Interrupt Invert Join Judge Keep Kill Launch Leave Let Limit List Load Look Lower Make Map Mark Mask
    Match Measure Merge Move Multiply Name Note Open Override Pack Pad Parse Pass Patch Pause Place Plan Plant Point
    Poison Post Predict Prepare Pretend Print Process Project Pronounce Put Raise Read Record Reduce Refuse Register
    Rehearse Remove Render Repeat Replace Replay Report Reserve Reset Resolve Restore Return Reverse Rewrite Round Run
    Sample Save Scale Search Select Send Serve Set Share Shift Show Shrink Shuffle Simulate Skip Sort Split Stand Start
    Step Stop Store Strip Sum Summarize Swap Switch Synchronize Take Tell Test Time Trace Train Transform Translate
    Transpose Try Tune Turn Undo Unpack Update Use Validate Verify Visit Wait Walk Warn Watch Wrap Write Yield Zero
"""
# No docstring or comment starts with one of these.
RIDDLES = """
    All And As But By Else How It Its Neither None Nor Of Or So That Them These They Those What Whatever Where
    Whether Which Who Whose Why
"""
MOST_WORDS = 25
# Words of a private voice, and what to write instead.
BANNED = {
    r"(?<!--)anew": "again",
    r"but for|but in|but not where": '"Exception:"',
    r"by count": "estimated",
    r"going on": "active",
    r"in vain": "until it times out",
    r"many a": "many",
    r"obstacle|refusal": "reason",
    r"of torch's|torch's (own )?(GRUs?|GRUCells?|modules?)|torchs": "nn.GRU",
    r"surroundings": "torch state",
    r"the first will do|that there are|none that": "name the thing",
    r"whatever (it|that) is|whatever it was": "any",
    r"yardstick": "baseline",
}


def find_faults(path: pathlib.Path) -> list[str]:
    """Return each broken rule of a Python file or a document, with its line."""
    iterate = iterate_python if path.suffix == ".py" else iterate_markdown
    faults = [(line, fault) for line, kind, text in iterate(path.read_text()) for fault in check_text(kind, text)]
    return [f"{path}:{line}: {fault}" for line, fault in sorted(faults)]


def check_text(kind: str, text: str) -> Iterator[str]:
    """Yield each rule that a text breaks. A name or a string that is no docstring may break only the last list."""
    for banned, instead in BANNED.items():
        if match := re.search(rf"\b({banned})\b", text, re.IGNORECASE):
            yield f'write {instead} for "{match[0]}"'
    if kind in ("name", "string"):
        return
    first = re.split(r"[\s.,:;]", text.strip(), maxsplit=1)[0]
    if kind == "function" and first not in VERBS.split():
        yield f'a docstring starts with a verb (VERBS in tests/test_prose.py), got "{first}"'
    elif kind == "class" and first not in ("A", "An", "The"):
        yield f'the docstring of a class starts with an article, got "{first}"'
    elif kind in ("module", "test", "comment") and first in RIDDLES.split():
        yield f'start with a noun or a verb, got "{first}"'
    for sentence in split_sentences(text):
        words = re.findall(r"\S*[A-Za-z]{2}\S*|\ba\b|\bI\b", sentence)
        if len(words) > MOST_WORDS:
            yield f'a sentence has at most {MOST_WORDS} words, got {len(words)}: "{sentence[:60]}..."'
        if sentence.count(";") > 1:
            yield f'a sentence has one semicolon at most: "{sentence[:60]}..."'


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of paragraphs, list entries and indented lines. Code counts as a word."""
    text = re.sub(r"`+[^`]+`+", "code", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=[-*|>] |\d+\. )|\n(?=    )", text):
        yield from re.split(r"(?<=[.?!])['\")]?\s+", " ".join(paragraph.split()))


def iterate_python(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the kind and the text of each name, string, docstring and block of comments."""
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}
    for node in ast.walk(ast.parse(source)):
        name = "" if isinstance(node, ast.keyword) else getattr(node, "name", "") or getattr(node, "attr", "")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, "string", node.value
        elif name or isinstance(node, ast.arg):
            yield node.lineno, "name", (name or node.arg).replace("_", " ")
        if type(node) in kinds and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, "test" if name.startswith("test_") else kinds[type(node)], docstring
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    while comments:
        block = [comments.pop(0)]
        while comments and comments[0].start == (block[-1].start[0] + 1, block[-1].start[1]):
            block.append(comments.pop(0))
        yield block[0].start[0], "comment", "\n".join(comment.string.lstrip("# ") for comment in block)


def iterate_markdown(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the kind and the text of each paragraph, without code, tables and headings."""
    text = re.sub(r"(?ms)^```.*?^```\s*$", lambda code: "\n" * code[0].count("\n"), text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for match in re.finditer(r"(?ms)(?:(?!^\s*$).)+", text):
        if not match[0].lstrip().startswith(("|", "#")):
            yield text.count("\n", 0, match.start()) + 1, "document", match[0]


def list_files(*paths: pathlib.Path) -> list[pathlib.Path]:
    """Return the Python files and documents among ``paths`` and in folders among them."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sorted(file for file in files if file.suffix in (".py", ".md"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_prose(folder):
    exempt = [ROOT / name for name in EXEMPT]
    paths = [path for path in list_files(ROOT / folder, ROOT / "README.md") if path not in exempt]
    faults = [fault for path in paths for fault in find_faults(path)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source, fault",
    [
        ('def f():\n    """Of a row."""', "starts with a verb"),
        ('class A:\n    """Those of a row."""', "starts with an article"),
        ('"""What a row is."""', "start with a noun"),
        ("# Whether it is.", "start with a noun"),
        ("# The row is read anew.", 'write again for "anew"'),
        ("# The row " + "is long, very long, and " * 6 + "ends.", "at most 25 words"),
        ("# One\n# row " + "is long, very long, and " * 6 + "ends.", "at most 25 words"),
        ("# A; b; c.", "one semicolon"),
    ],
)
def test_finds_planted_faults(tmp_path, source, fault):
    path = tmp_path / "planted.py"
    path.write_text(source)
    (line,) = find_faults(path)
    assert fault in line


if __name__ == "__main__":
    faults = [fault for path in list_files(*map(pathlib.Path, sys.argv[1:])) for fault in find_faults(path)]
    print("\n".join(faults))
    sys.exit(bool(faults))
