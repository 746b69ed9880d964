"""Policy models: families that answer `evaluate(rows, wants)`."""
