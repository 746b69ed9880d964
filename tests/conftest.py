"""Settings that must stand before torch loads."""

import os

# Tests share their cores: threads that wait for each other must not spin (see
# manta.orchestrator.placement).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
