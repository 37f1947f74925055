"""Settings: the environment and headrace.toml, read once, typed, validated once, and refused in one sentence."""
