"""The command line's verbs that need the server's libraries; found by the CLI through entry points."""
