"""Small facts for look-up and coordination; rebuilt from the log when lost."""
