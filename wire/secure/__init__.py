"""Secure aggregation: what server and client both compute, so that masks cancel on slices."""
