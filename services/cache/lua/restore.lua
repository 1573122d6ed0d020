-- Adds to an account's budget what it had used before Redis counted it, once. Without that a budget that is new, or whose
-- counter was lost with the server's data, would begin at nothing in the middle of its month. Keys as in admit.lua.
--
-- ARGV  account, since when Redis counts it (Unix ms), day, its tokens and micro-units, month, its tokens and micro-units
-- returns 1, or 0 when it is done already, or Redis has begun anew meanwhile

local budget = 'forebay:budget:' .. ARGV[1]
local found = redis.call('HMGET', budget, 'since', 'restored', 'day', 'month')
if found[1] ~= ARGV[2] or found[2] then
  return 0
end
redis.call('HSET', budget, 'restored', 1)
if found[3] == ARGV[3] then
  redis.call('HINCRBY', budget, 'day_tokens', ARGV[4])
  redis.call('HINCRBY', budget, 'day_micros', ARGV[5])
end
if found[4] == ARGV[6] then
  redis.call('HINCRBY', budget, 'month_tokens', ARGV[7])
  redis.call('HINCRBY', budget, 'month_micros', ARGV[8])
end
return 1
