"""What became of every row: one durable transaction a turn, in one SQLite file a batch."""
