"""Engines: what turns a prefix into completions, behind one protocol."""
