"""Settings of the whole suite."""

from hypothesis import settings

# A machine under load misses deadlines that say nothing about the code.
settings.register_profile("walstream", deadline=None, print_blob=True)
settings.load_profile("walstream")
