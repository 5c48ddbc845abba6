"""What the worker of tests/test_speed_benchmark.py does, which hangs or dies as it is asked to: it needs no torch."""

import os
import signal
import sys
import time


class Tasks:
    def __init__(self, job):
        pass

    def start(self):
        return {"started": True}

    def hang(self):
        time.sleep(60)

    def die(self):
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
