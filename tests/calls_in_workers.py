"""What a process that compiles is asked to do in tests: well, badly, or not at all. It imports nothing slow."""

import os
import sys
import time


class Unreadable:
    """An item that a process cannot make out."""

    def __reduce__(self):
        return _fail, ()


def _fail():
    raise NameError("it is not known here")


def behave(what) -> str | None:
    """Do what is asked for; return a reason or nothing."""
    if what == "say why":
        return "because"
    if what == "print":
        print("not an answer", flush=True)
        os.write(1, b"neither\n")
    elif what == "raise":
        raise ValueError("two\nlines")
    elif what == "die":
        print("with its last words", file=sys.stderr, flush=True)
        os._exit(1)
    elif what == "hang":
        time.sleep(600)
    return None
