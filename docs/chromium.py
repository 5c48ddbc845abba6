"""A Chromium of the system's, driven by Playwright, and Model Explorer running for it to look at."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Model Explorer draws by WebGL; without a GPU it needs the one that runs in software.
_ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def explored(script: str) -> Iterator[str]:
    """The address at which Model Explorer shows what a script explores at the port that is its argument."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-c", script, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            said = []
            for line in server.stdout or ():
                said.append(line)
                if found := re.search(rf"http://localhost:{port}/\S*", line):
                    break
            else:
                raise RuntimeError("Model Explorer did not start:\n" + "".join(said))
            yield found[0]
        finally:
            server.kill()
