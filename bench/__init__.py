"""The side-by-side benchmark: this project, Redis streams and the raw disk, in one run."""
