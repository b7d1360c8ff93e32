"""The live page of a namespace: what it shows, and how it is served."""
