"""What `tests/unit/gateway/test_login.py` says of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_login

globals().update(again.unit_tests(test_login))
