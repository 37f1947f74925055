"""Tests. `tests/README.md` says what goes where."""
