"""Hypernetworks: the home of weight generators; none ship yet."""
