"""Writes ``zennit.npz``: what zennit says of the networks of ``zennit_nets.py``.

Made with zennit 1.0.0 on torch 2.14.1 and torchvision 0.29.1; the file says the versions again.
zennit needs Python 3.11.11 or newer. From the folder ``tests``:

    python -m golden.make_zennit
"""

import copy
from importlib.metadata import version

import numpy as np
from zennit_nets import COMPOSITES, GOLDEN, NETS, digest, net, zennits


def main():
    stored = {"versions": np.array([f"{name} {version(name)}" for name in ("zennit", "torch", "torchvision", "numpy")])}
    for name in NETS:
        model, x = net(name)
        for composite in COMPOSITES:
            found = digest(zennits(name, composite, copy.deepcopy(model), x))
            stored.update({f"{name}/{composite}/{part}": value.detach().numpy() for part, value in found.items()})
            print(f"{name:10} {composite:26} largest value {found['largest']:.4g}")
    np.savez_compressed(GOLDEN, **stored)
    print(*stored["versions"], sep="\n")


if __name__ == "__main__":
    main()
