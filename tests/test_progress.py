"""A line of progress: where reading a model takes long, on a terminal or where it is logged, and nowhere else."""

import io
import logging
import sys
import time

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.common import progress
from fxlrp.errors import CaptureError
from fxlrp.runtime import captures


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Closed(Terminal):
    def write(self, text):
        raise OSError("gone")


class Opened(nn.Module):
    """Symbolic tracing cannot follow it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        if x.shape[1] < 1:
            raise ValueError
        return self.head(x)


def until(told):
    """Go on once ``told()`` holds."""
    for _ in range(1000):
        if told():
            return
        time.sleep(0.01)
    raise AssertionError("nothing was told")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.001)


def as_stderr(monkeypatch, stream):
    """The stream in the place of stderr, where pytest puts its own between fixtures and test."""
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_is_told_in_one_line_what_is_done_and_how_long_it_took(impatient, monkeypatch):
    terminal = as_stderr(monkeypatch, Terminal())
    export = captures.export

    def long(*args, **kwargs):
        progress.stage("torch.export follows its code")
        until(lambda: "torch.export follows its code, 0 s so far" in terminal.getvalue())
        return export(*args, **kwargs)

    monkeypatch.setattr(captures, "export", long)
    fxlrp.compile(Opened().eval(), "conserving")(torch.randn(2, 4), target=0)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("\033[Kfxlrp reads Opened: ")
    assert last.endswith("s in all\n")


def test_what_is_quick_is_not_told(monkeypatch):
    terminal = as_stderr(monkeypatch, Terminal())
    monkeypatch.setattr(progress, "PATIENCE", 60)
    fxlrp.compile(Opened().eval(), "conserving")(torch.randn(2, 4), target=0)
    assert terminal.getvalue() == ""


def test_what_is_no_terminal_is_told_nothing(impatient, monkeypatch):
    stderr = as_stderr(monkeypatch, io.StringIO())
    fxlrp.compile(Opened().eval(), "conserving")(torch.randn(2, 4), target=0)
    assert stderr.getvalue() == ""


def test_one_record_is_logged_where_the_level_allows_it(impatient, monkeypatch, caplog):
    as_stderr(monkeypatch, io.StringIO())
    with caplog.at_level(logging.INFO, logger="fxlrp"), progress.watched("fxlrp reads"), progress.watched("within"):
        until(lambda: caplog.messages)
        progress.stage("more")
    (told,) = caplog.messages
    assert told.startswith("fxlrp reads: ")
    assert told.endswith("s so far")


@pytest.mark.parametrize("stderr", [None, Closed()])
def test_a_terminal_that_is_gone_stops_nothing(impatient, monkeypatch, stderr):
    as_stderr(monkeypatch, stderr)
    explanation = fxlrp.compile(Opened().eval(), "conserving")(torch.randn(2, 4), target=0)
    assert explanation.relevance.shape == (2, 4)


def test_an_error_ends_the_line(impatient, monkeypatch):
    terminal = as_stderr(monkeypatch, Terminal())

    def fails(*args, **kwargs):
        until(terminal.getvalue)
        raise CaptureError("no")

    monkeypatch.setattr(captures, "export", fails)
    with pytest.raises(CaptureError):
        fxlrp.compile(Opened().eval(), "conserving")(torch.randn(2, 4))
    assert terminal.getvalue().endswith("s in all\n")
