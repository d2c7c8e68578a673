"""Averages: how replies merge into the next supernet."""
