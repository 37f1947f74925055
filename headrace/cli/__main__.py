"""`python -m headrace.cli`, for checkouts that are not installed."""

from headrace.cli import main

main()
