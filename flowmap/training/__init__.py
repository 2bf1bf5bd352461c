"""The only loop, and what it needs to be left alone over a weekend."""
