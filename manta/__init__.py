"""Manta: online reinforcement learning of generative models on Ray.

The four code folders at the top of the repository are importable from here:
`manta.envs`, `manta.algorithms`, `manta.actors` and `manta.orchestrator`.
"""

__version__ = "0.1.0"
