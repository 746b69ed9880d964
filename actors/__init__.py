"""What runs: Ray shells over plain objects (engines, backends, scorers, transports)."""
