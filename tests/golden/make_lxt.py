"""Writes ``lxt.npz``: what LXT says of the networks of ``lxt_nets.py``.

Made with lxt 2.1 on torch 2.14.1 and torchvision 0.29.1; the file says the versions again. From the folder ``tests``:

    python -m golden.make_lxt
"""

from importlib.metadata import version

import numpy as np
from lxt_nets import GOLDEN, RUNS


def main():
    stored = {"versions": np.array([f"{name} {version(name)}" for name in ("lxt", "torch", "torchvision", "numpy")])}
    for run, relevance in RUNS.items():
        for positions in (False, True):
            for where, value in relevance(positions=positions).items():
                stored[f"{run}/{positions}/{where}"] = value.numpy()
                print(f"{run}, positions {positions}, {where:15} largest value {value.abs().max():.4g}")
    np.savez_compressed(GOLDEN, **stored)
    print(*stored["versions"], sep="\n")


if __name__ == "__main__":
    main()
