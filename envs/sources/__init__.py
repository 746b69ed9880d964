"""Task sources: files, hub data sets and generators, all by index."""
