"""Runs: settings resolved, started, planned, launched, looked into, replayed, reproduced."""
