"""Runs: resolve settings, then start, plan, launch, inspect, replay or reproduce a run."""
