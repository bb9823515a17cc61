"""Students with state-space mixers, distilled from a transformer."""
