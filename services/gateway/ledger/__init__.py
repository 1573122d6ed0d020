"""The usage ledger: each call once in SQL, whatever dies when.

`table` is the schema, `books` what is asked of SQL, `writer` brings entries there, from the stream in Redis or past it;
`reaper` settles the calls of gateways that died, with the counts that `pods` have; `usage` sums up.
"""

from services.gateway.ledger.books import Books, BooksClosed, open_books
from services.gateway.ledger.writer import Ledger

__all__ = ["Books", "BooksClosed", "Ledger", "open_books"]
