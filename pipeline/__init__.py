"""Refine real chat, end to end: ingest, measure, decide, write."""

VERSION = "0.1.0"
