"""What people type: one module a command, its help and its one-line errors."""
