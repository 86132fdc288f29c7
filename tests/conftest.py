"""What holds for every test."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _root_logger_as_it_was():
    # A program that is run inside a test may add a handler, whose stream pytest closes when the test ends.
    before = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before
