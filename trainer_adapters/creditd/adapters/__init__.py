"""Adapters between trainers and creditd: alignment only, no arithmetic. Importing this package imports no framework."""
