"""One PChannel at work: sequencer and group commit, write-ahead buffer, subscriptions."""
