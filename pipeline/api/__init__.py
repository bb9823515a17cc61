"""Python API: the functions behind the commands, each with a typed result. `import refine` re-exports them."""
