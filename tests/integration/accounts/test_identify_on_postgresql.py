"""What `tests/unit/gateway/test_identify.py` says of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_identify

globals().update(again.unit_tests(test_identify))
