"""What can be configured, where it comes from, and the reference that is written from it."""
