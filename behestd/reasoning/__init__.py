"""The room of reasoning: tasks, operators, graphs, strategies, and how runs with a graph go on. No I/O, no clock."""
