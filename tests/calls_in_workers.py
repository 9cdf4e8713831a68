"""Calls for tests of the processes that compile: some succeed, some fail, die or hang. Imports nothing slow."""

import os
import sys
import time


class Unreadable:
    """An item that a process cannot unpickle."""

    def __reduce__(self):
        return _raise_name_error, ()


def _raise_name_error():
    raise NameError("it is not known here")


def behave(action) -> str | None:
    """Do the action that ``action`` names: print, raise, die, hang, or nothing.

    Return the reason of a failed compilation for "say why", otherwise None, as the functions that the pool calls do.
    """
    if action == "say why":
        return "because"
    if action == "print":
        print("not an answer", flush=True)
        os.write(1, b"neither\n")
    elif action == "raise":
        raise ValueError("two\nlines")
    elif action == "die":
        print("with its last words", file=sys.stderr, flush=True)
        os._exit(1)
    elif action == "hang":
        time.sleep(600)
    return None
