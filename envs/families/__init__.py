"""Task families: where tasks come from and how an episode goes on."""
