-- Replaces a reservation by what was used, if the window that it was made in still runs.
--
-- KEYS[1]  the caller's window
-- ARGV     window id, tokens reserved, tokens used

if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then
  redis.call('HINCRBY', KEYS[1], 'tokens', tonumber(ARGV[3]) - tonumber(ARGV[2]))
end
return 0
