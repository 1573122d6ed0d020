-- Takes one attempt from each account, or from none where one has none left; or gives one back to each. In one round trip.
--
-- An account's value is the time, in ms since the epoch, at which it will have all its attempts again (the "theoretical
-- arrival time" of GCRA, the generic cell rate algorithm of ITU-T I.371); it is absent when it has them all.
--
-- KEYS     the accounts
-- ARGV[1]  1 takes, -1 gives back
-- ARGV     then for each account: attempts that it has at most, ms until one of them comes back
-- returns  0, or ms until the attempt would be allowed

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local full, wait = {}, 0

for index, key in ipairs(KEYS) do
  local attempts, interval = tonumber(ARGV[2 * index]), tonumber(ARGV[2 * index + 1])
  full[index] = math.max(now, tonumber(redis.call('GET', key) or 0)) + ARGV[1] * interval
  wait = math.max(wait, full[index] - attempts * interval - now)
end

if ARGV[1] == '1' and wait > 0 then
  return wait
end
for index, key in ipairs(KEYS) do
  if full[index] > now then
    redis.call('SET', key, full[index], 'PX', full[index] - now)
  else
    redis.call('DEL', key)
  end
end
return 0
