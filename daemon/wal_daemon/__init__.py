"""The daemon: one process is one streaming node, and perhaps the coordinator."""
