"""What the daemon tells of itself: logs, metrics, traces. See docs/telemetry.md."""
