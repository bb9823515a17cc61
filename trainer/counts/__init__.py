"""Counts of n-grams in the place of networks: Kneser-Ney models of growing budgets, in milliseconds each."""
