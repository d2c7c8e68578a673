"""Costs: what a subnet requires of a device."""
