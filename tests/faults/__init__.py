"""Faults: what the disk, the machine and other owners do to a log."""
