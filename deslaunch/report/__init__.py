"""What became of every row, out of a ledger: CSV, JSONL, or one HTML page."""
