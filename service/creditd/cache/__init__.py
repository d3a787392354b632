"""Utilities remembered: in the memory of the process, and in Redis where there is one."""
