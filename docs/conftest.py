"""The code of every page runs, and gives what the page says."""

import doctest
import importlib.util
import os
import shutil
import tempfile

import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

_before = []


def pytest_configure(config):
    torch.set_num_threads(1 if hasattr(config, "workerinput") else 2)  # a thread per worker


def _missing(package):
    return importlib.util.find_spec(package) is None


def _enter(namespace):
    # What the comments ask that leave blocks out.
    namespace.update(missing=_missing, shutil=shutil)
    folder = tempfile.TemporaryDirectory()
    _before.append((os.getcwd(), folder))
    os.chdir(folder.name)


def _leave(namespace):
    back, folder = _before.pop()
    os.chdir(back)
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE),
        SkipParser(),
    ],
    patterns=["*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()
