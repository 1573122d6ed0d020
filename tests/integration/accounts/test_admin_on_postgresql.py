"""What `tests/unit/gateway/test_admin*.py` say of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import (
    test_admin,
    test_admin_keys,
    test_admin_reach,
    test_admin_tenants,
    test_admin_users,
    test_admin_writes,
)

for module in (test_admin, test_admin_keys, test_admin_reach, test_admin_tenants, test_admin_users, test_admin_writes):
    globals().update(again.unit_tests(module))
