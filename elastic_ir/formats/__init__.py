"""Formats: bytes on disk, one format a file, reader and writer together. No graphs here."""
