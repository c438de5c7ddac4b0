"""Runs: determine their settings, and start, plan, launch, inspect, replay or reproduce them."""
