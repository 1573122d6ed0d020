"""What `tests/unit/gateway/test_accounts.py` says of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_accounts

globals().update(again.unit_tests(test_accounts))
