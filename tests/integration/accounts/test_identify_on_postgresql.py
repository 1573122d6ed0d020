"""What `tests/unit/gateway/test_identify*.py` say of SQLite holds on PostgreSQL."""

from tests.integration.accounts import again
from tests.unit.gateway import test_identify, test_identify_tokens, test_identify_trust

for module in (test_identify, test_identify_tokens, test_identify_trust):
    globals().update(again.unit_tests(module))
