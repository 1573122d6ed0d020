-- Ends a call's reservation, exactly once: puts what was used in its place, frees the slots, writes the ledger, keeps
-- the answer and gives up the lead among identical calls. Does nothing when the call has no lease any more. One round
-- trip. The keys are those of admit.lua.
--
-- ARGV  1 call id, 2 process, 3 receipt, 4 tokens used, 5 micro-units used, 6 ms that the call took,
--       7 flight's key or '', 8 flight's value, 9 answer's key or '', 10 answer, 11 seconds to keep it,
--       from 12 on the ledger entry's names and values in turn, none for no entry
-- returns 1, or 0 when someone has settled the call before

if redis.call('HDEL', 'forebay:leases:' .. ARGV[2], ARGV[1]) == 0 then
  return 0
end

local word = string.gmatch(ARGV[3], '%S+')
local used_tokens, used_micros = tonumber(ARGV[4]), tonumber(ARGV[5])
local more_tokens, more_micros = used_tokens - tonumber(word()), used_micros - tonumber(word())

for _ = 1, 2 do
  local name, ends, taken, day, month, slot = word(), word(), tonumber(word()), word(), word(), word()
  if ends ~= '0' and used_tokens ~= taken then
    local window = 'forebay:window:' .. name
    if redis.call('HGET', window, 'ends') == ends then -- else it has ended, and the reservation with it
      redis.call('HINCRBY', window, 'tokens', used_tokens - taken)
    end
  end
  if day ~= '0' and (more_tokens ~= 0 or more_micros ~= 0) then
    local budget = 'forebay:budget:' .. name
    local found = redis.call('HMGET', budget, 'day', 'month')
    if found[1] == day then
      redis.call('HINCRBY', budget, 'day_tokens', more_tokens)
      redis.call('HINCRBY', budget, 'day_micros', more_micros)
    end
    if found[2] == month then
      redis.call('HINCRBY', budget, 'month_tokens', more_tokens)
      redis.call('HINCRBY', budget, 'month_micros', more_micros)
    end
  end
  if slot == '1' then
    redis.call('ZREM', 'forebay:running:' .. name, ARGV[1])
    local held = 'forebay:held:' .. name
    local before = tonumber(redis.call('GET', held) or ARGV[6])
    redis.call('SET', held, math.floor(before + (ARGV[6] - before) / 8), 'EX', 3600)
  end
end

if ARGV[7] ~= '' and redis.call('GET', ARGV[7]) == ARGV[8] then
  redis.call('DEL', ARGV[7])
end
if ARGV[9] ~= '' then
  redis.call('SET', ARGV[9], ARGV[10], 'EX', ARGV[11])
end
if ARGV[12] then
  redis.call('XADD', 'forebay:ledger', '*', unpack(ARGV, 12))
end
return 1
