"""What `tests/unit/gateway/test_ledger_usage.py` says of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_ledger_usage
from tests.unit.gateway.test_ledger_usage import asked, books  # noqa: F401

globals().update(again.unit_tests(test_ledger_usage))
