"""What ``superfednas bench`` measures: every figure a ratio to something of the same call."""
