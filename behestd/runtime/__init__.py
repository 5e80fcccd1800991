"""The room of tasks: drivers that keep runs going, the performers of their effects, and who supervises them."""
