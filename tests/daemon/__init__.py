"""The daemon, in parts and as a process."""
