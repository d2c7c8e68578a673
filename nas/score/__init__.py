"""Scores: how good a subnet is, measured, predicted, or without weights."""
