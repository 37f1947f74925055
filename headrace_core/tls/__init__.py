"""Encryption of the services' own ports: their certificate, its rotation, and a word where there is none."""
