"""Neuron Ledger from Python: `open_lake` opens what the commands have made."""

from explorer.access import open_lake

__all__ = ["open_lake"]
