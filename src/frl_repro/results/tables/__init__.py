"""Result tables: how they are written and read, which rows belong together, and how certain they are. No torch."""
