"""Postgres: the pool, the statements, the migrations, the errors."""
