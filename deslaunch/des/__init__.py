"""DES: its JSON, its HTTP, its tokens, and the jobs that it knows."""
