"""The client: finds the daemon, appends in batches without duplicates, tails resumably."""
