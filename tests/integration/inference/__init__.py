"""A pod under gunicorn, with a real model."""
