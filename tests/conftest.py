"""What holds for every test."""

import logging
import signal

import pytest

# A shell without job control starts background programs with Ctrl-C ignored, and the programs of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _root_logger_as_it_was():
    # A program that is run inside a test may add a handler, whose stream pytest closes when the test ends.
    before = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before
