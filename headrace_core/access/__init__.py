"""Who calls, and what they may do: identities, grants, the one table of methods, and where identities come from."""
