"""Which processes of a test live, and waiting for what they do."""

from __future__ import annotations

import time

import psutil


def running(*texts, without=()):
    """Return the living processes whose command line has all of these texts, and none of some others."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            wanted = all(str(text) in line for text in texts) and not any(text in line for text in without)
            if wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition, seconds, what):
    """Wait until a condition holds; fail after some seconds, saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
