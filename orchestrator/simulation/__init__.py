"""A run in virtual time: the orchestrator's own code, over stand-ins for what takes time."""
