"""What crosses a process border: actor names, wire format, commands, changes, call headers."""
