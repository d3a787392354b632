"""Models: what loads them, and what scores many variants of one text at the cost of their distinct prefixes."""
