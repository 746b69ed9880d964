"""The world: records, protocols, episodes, task families and rule rewards (numpy and stdlib)."""
