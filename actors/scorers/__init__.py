"""Scorers: models that score trajectories (reference log-probs first)."""
