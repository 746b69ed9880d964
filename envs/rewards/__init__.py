"""Rule rewards: pure functions of a task and what the policy wrote."""
