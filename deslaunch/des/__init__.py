"""DES: its JSON, its HTTP, and its tokens."""
