"""The undisturbed run that others are held against is the one of the end-to-end tests."""

from tests.e2e.conftest import finished

__all__ = ["finished"]
