"""What every layer of walstream shares: messages, batches, frames, time, errors and limits."""
