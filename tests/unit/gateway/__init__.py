"""The gateway's steps one by one, with a real database and, where Redis is meant, a real Valkey."""
