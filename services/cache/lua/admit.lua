-- Reserves one request and its tokens in the caller's window, and looks the answer up, in one round trip.
--
-- KEYS[1]  the caller's window: hash {id, requests, tokens}; it is born with the first request and expires whole
-- KEYS[2]  the cached answer, or the same key as KEYS[1] when there is nothing to look up
-- ARGV     requests per window, tokens per window, tokens to reserve, window length in ms
-- returns  {refused ("", "requests" or "tokens"), requests left, tokens left, ms until the window ends, window id,
--           tokens reserved, cached answer or false}

local requests_limit, tokens_limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted, length = tonumber(ARGV[3]), tonumber(ARGV[4])

local window = redis.call('HMGET', KEYS[1], 'id', 'requests', 'tokens')
local id, requests, tokens = window[1], tonumber(window[2] or 0), tonumber(window[3] or 0)
local remaining = redis.call('PTTL', KEYS[1])
if not id or remaining <= 0 then
  local now = redis.call('TIME')
  id, requests, tokens, remaining = now[1] .. '.' .. now[2], 0, 0, length
end

local cached = false
if KEYS[2] ~= KEYS[1] then
  cached = redis.call('GET', KEYS[2])
end

-- A cached answer costs no tokens. A request larger than the whole limit may have a whole window for itself.
local reserved = cached and 0 or math.min(wanted, tokens_limit)

local refused = ''
if requests + 1 > requests_limit then
  refused = 'requests'
elseif tokens + reserved > tokens_limit then
  refused = 'tokens'
end

if refused ~= '' then
  cached, reserved = false, 0
else
  requests, tokens = requests + 1, tokens + reserved
  redis.call('HSET', KEYS[1], 'id', id, 'requests', requests, 'tokens', tokens)
  redis.call('PEXPIRE', KEYS[1], remaining)
end

return {refused, math.max(0, requests_limit - requests), math.max(0, tokens_limit - tokens), remaining, id, reserved, cached}
