"""The schema's `versions`, for Alembic, which enters by `env`. A new one is a file with the next number: see
`migrate.py`.
"""
