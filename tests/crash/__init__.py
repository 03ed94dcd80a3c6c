"""Real daemons, really killed."""
