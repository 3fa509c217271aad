"""Launchers and the sweeper of this project. Hydra imports every module of the namespace package ``hydra_plugins`` at
each start, and accepts plugins from there alone: nothing slow may be imported here.
"""
