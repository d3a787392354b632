"""The `creditd` command."""
