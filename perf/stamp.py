"""Time and commit of a row. This file imports no torch."""

import datetime
import os
import subprocess


def timestamp() -> str:
    """Return the current time in UTC as ISO 8601 text, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def read_commit() -> str:
    """Return the commit of the measured code: GIT_SHA from the environment, or else the commit of the repository.

    A copy of the code without a repository needs GIT_SHA. Return "" if GIT_SHA is unset and git finds no commit.
    """
    return os.environ.get("GIT_SHA") or read_output("git", "rev-parse", "HEAD")


def read_output(*command: str) -> str:
    """Return the stripped standard output of a command, or "" if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
