"""Deliberately broken services: each variant breaks one promise, and the checker must catch it."""
