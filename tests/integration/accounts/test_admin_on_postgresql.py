"""What `tests/unit/gateway/test_admin.py` and `test_admin_writes.py` say of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_admin, test_admin_writes

globals().update(again.unit_tests(test_admin), **again.unit_tests(test_admin_writes))
