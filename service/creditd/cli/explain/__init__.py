"""`creditd explain`: the credit of completions as a page that can be looked at."""
