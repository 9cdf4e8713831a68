"""Time and commit of a row. This file imports no torch."""

import datetime
import os
import subprocess


def timestamp() -> str:
    """Return the current time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def read_commit() -> str:
    """Return GIT_SHA, which names the commit of a copy, or else the repository's commit. Return "" without both."""
    return os.environ.get("GIT_SHA") or read_output("git", "rev-parse", "HEAD")


def read_output(*command: str) -> str:
    """Return the output of a command, or "" if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
