"""Flags shared by several experiments, each defined once; a binary adopts the modules it uses."""
