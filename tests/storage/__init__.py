"""The log as files."""
