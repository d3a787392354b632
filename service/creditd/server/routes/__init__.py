"""The routes: parse, call, convert, in at most fifteen lines each."""
