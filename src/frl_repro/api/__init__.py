"""The front door in Python, one module a task; `import frl_repro` offers the names.

These functions check what they are given and call what the command line calls.
"""
