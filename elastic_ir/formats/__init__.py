"""Formats: bytes on disk, one format a file, reader and writer together, and the registry of all. No graphs here."""

from elastic_ir.formats.registry import Format, ReadOptions, Stored, register, registered

__all__ = ["Format", "ReadOptions", "Stored", "register", "registered"]
