"""What every package may use: errors, files, locks, random streams, progress, provenance. Imports nothing slow."""
