"""Learning: loss, optimizer and schedule, and the loop."""
