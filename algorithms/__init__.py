"""The maths: advantages, ratios, losses, KL and aggregation as pure functions on tensors."""
