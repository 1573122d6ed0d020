"""Accounts, ledger and identity on a real PostgreSQL, and what becomes of gateways whose database goes."""
