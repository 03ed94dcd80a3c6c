"""Pure functions of the core."""
