"""What watches the reverse sweep: each wish of a request is an object that the sweep calls.

A watcher sees every node before and after its relevance is shared, and adds to what the program returns.
"""

from fxlrp.passes.watchers.base import Watcher
from fxlrp.passes.watchers.checkpoints import CheckpointWatcher
from fxlrp.passes.watchers.conditions import ConditionWatcher
from fxlrp.passes.watchers.ledger import LedgerWatcher
from fxlrp.passes.watchers.nodes import NodeWatcher

__all__ = ["CheckpointWatcher", "ConditionWatcher", "LedgerWatcher", "NodeWatcher", "Watcher"]
