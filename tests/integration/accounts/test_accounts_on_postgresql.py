"""What `tests/unit/gateway/test_accounts*.py` say of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import (
    test_accounts,
    test_accounts_audit,
    test_accounts_keys,
    test_accounts_tenants,
    test_accounts_users,
)

for module in (test_accounts, test_accounts_audit, test_accounts_keys, test_accounts_tenants, test_accounts_users):
    globals().update(again.unit_tests(module))
