"""Bulk prefill: the records of a whole user base, from files of histories into a store."""
