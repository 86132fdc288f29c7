"""Small and unwritable disks, for those who may mount them."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(folder, size="1m"):
    """Mount a disk of that size on a folder; skip the test where this is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def make_read_only(folder):
    """Let nothing more be written to a mounted disk, by nobody, not even root."""
    _mount("-o", "remount,ro", folder)


def make_larger(folder, size):
    """Give a mounted disk more room."""
    _mount("-o", f"remount,size={size}", folder)


def fill(folder):
    """Take all the room that a disk has left."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _mount(*arguments):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
