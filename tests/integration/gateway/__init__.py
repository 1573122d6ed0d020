"""Gateway processes under gunicorn, with a real Valkey, before pods that are scripted or real."""
