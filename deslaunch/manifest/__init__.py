"""A file of rows, or rows of a program, to rows that were checked."""
