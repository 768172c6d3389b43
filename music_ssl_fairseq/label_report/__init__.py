"""A page about a set of labels: how units are used, and what they sound like."""
