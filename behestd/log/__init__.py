"""The durable log: ports, views, the group-committing writer and its stores."""
