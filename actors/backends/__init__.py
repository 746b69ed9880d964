"""Learner backends: what holds parameters and optimizer state and steps them."""
