"""When a row is written, and of which commit; imports no torch."""

import datetime
import os
import subprocess


def timestamp() -> str:
    """Return the time now, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def read_commit() -> str:
    """Return what GIT_SHA says of a copy, whatever repository it may lie in, else the repository's; or nothing."""
    return os.environ.get("GIT_SHA") or read_output("git", "rev-parse", "HEAD")


def read_output(*command: str) -> str:
    """Return what the command prints, nothing where there is no such command or it does not apply."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
