"""Servers around the work: how they are brought up on one machine and on many."""
