-- Reserves all that a call may use, of its subject's limits and of its tenant's, looks the answer up, takes the lead
-- among identical calls and writes the lease: all of it, or nothing and why not. One round trip.
--
-- A call whose answer is kept ends here: it takes a request and nothing that must be given back, so it needs no lease, and
-- its entry goes to the ledger at once, whatever becomes of its gateway.
--
-- Not for Redis Cluster: names of keys are made here, and a call touches those of two accounts.
--
-- forebay:window:<account>   hash {ends, requests, tokens}: a minute from its first request on, which ends whole
-- forebay:budget:<account>   hash {day, day_tokens, day_micros, month, month_tokens, month_micros}, by UTC; since, restored
-- forebay:running:<account>  sorted set of call ids by the Unix ms at which each is over at the latest
-- forebay:held:<account>     how many ms a call has lately held its slot, on average
-- forebay:leases:<process>   hash: call id -> what it takes to settle the call without its gateway
--
-- ARGV  1 call id, 2 process, 3 deadline (Unix ms), 4 tokens at most, 5 micro-units of money at most,
--       6 answer's key or '', 7 flight's key or '', 8 flight's value, 9 facts for the lease,
--       10 subject, 11-17 its limits, 18 tenant, 19-25 its limits,
--       26 the ledger's entry in case the answer is kept, JSON without its end ('': it is settled like any other call),
--       27-29 micro-units for a million tokens of a prompt, of its cached ones, of an answer,
--       30 1: only where the answer is kept, 31 the time in Unix ms (absent: the server's).
--       Limits: requests and tokens a minute, concurrent calls, tokens a day and a month, micro-units a day and a
--       month; '' is none.
-- returns false where 30 is set, and the answer is not kept or a limit refuses the call: then nothing was done; else
--       {0, or 10 or 20 (subject, tenant) plus the number of the limit that refuses; ms to wait, -1 where that does
--       not help; the answer as it is kept, behind the line of its tokens (services/cache/kept.py), or false; value of the flight that leads or false; receipt;
--       limit, left and ms until it is whole, of requests and then of tokens, of the tighter account; -1 is no limit;
--       thousandths of the tenant's budgets that were used before this call, of the day and of the month; -1 is none;
--       Unix ms since when the subject's and the tenant's budget are counted here, 0 where the past is known (restore.lua);
--       1 where the ledger has the call, and it is settled}
-- A receipt is: tokens, micro-units, and for each account its name, window's end, tokens taken of it, day, month, slot.

local id, deadline, tokens, micros = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = tonumber(ARGV[31])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local cached, leader = false, false
local prompt, prompt_cached, completion
if ARGV[6] ~= '' then
  cached = redis.call('GET', ARGV[6])
end
if cached then
  prompt, prompt_cached, completion = string.match(cached, '^(%d+) (%d+) (%d+)\n')
  cached = prompt and cached or false
end
if ARGV[30] == '1' and not cached then
  return false
end
if ARGV[7] ~= '' and not cached then
  leader = redis.call('GET', ARGV[7])
end
local tokens_text, micros_text = ARGV[4], ARGV[5]
if cached or leader then -- nothing will be computed for it
  tokens, micros, tokens_text, micros_text = 0, 0, '0', '0'
end

local refused, wait = 0, 0
local function refuse(limit, ms)
  if refused == 0 or ms > wait then
    refused, wait = limit, ms
  end
end

local DAY = 86400000
local today = math.floor(now / DAY)

-- The month of a day since 1970, as years * 12 + months; https://howardhinnant.github.io/date_algorithms.html
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153) -- 0 is March
  return (yoe + era * 400) * 12 + mp + 2
end

local function ms_to_next_month()
  local day = today + 1
  while month_of(day) == month_of(today) do
    day = day + 1
  end
  return day * DAY - now
end

local requests_limit, requests_left, requests_reset = -1, math.huge, 0
local tokens_limit, tokens_left, tokens_reset = -1, math.huge, 0

-- What the account whose name is ARGV[at] has, and whether the call fits.
local function look(at, number)
  local account = {name = ARGV[at], ends = 0, taken = 0, day = 0, month = 0, slot = 0, since = 0}
  local per_minute, per_minute_tokens = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if per_minute or per_minute_tokens then
    account.window = 'forebay:window:' .. account.name
    local found = redis.call('HMGET', account.window, 'ends', 'requests', 'tokens')
    local ends, requests, used = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[3] or 0)
    if ends <= now then
      ends, requests, used, account.born = now + 60000, 0, 0, true
    end
    -- A call larger than the whole limit may have a whole window for itself.
    local taken = math.min(tokens, per_minute_tokens or tokens)
    if per_minute and requests + 1 > per_minute then
      refuse(number + 1, per_minute < 1 and math.huge or ends - now)
    end
    if per_minute_tokens and (used + taken > per_minute_tokens or tokens > taken and taken == 0) then
      refuse(number + 2, per_minute_tokens < 1 and math.huge or ends - now)
    end
    account.ends, account.requests, account.used, account.taken = ends, requests, used, taken
    account.per_minute, account.per_minute_tokens = per_minute, per_minute_tokens
  end

  local concurrent = tonumber(ARGV[at + 3])
  if concurrent and not cached then
    account.running, account.slot = 'forebay:running:' .. account.name, 1
    redis.call('ZREMRANGEBYSCORE', account.running, '-inf', now)
    local count = redis.call('ZCARD', account.running)
    if count >= concurrent then
      if concurrent < 1 then
        refuse(number + 3, math.huge)
      else
        -- By then those that run now have ended, if they take as long as others have; the deadline is certain.
        local last = redis.call('ZRANGE', account.running, count - concurrent, count - concurrent, 'WITHSCORES')
        local usual = tonumber(redis.call('GET', 'forebay:held:' .. account.name) or 1000)
        refuse(number + 3, math.min(math.ceil(usual), tonumber(last[2]) - now))
      end
    end
  end

  local day_tokens, month_tokens = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local day_micros, month_micros = tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  if day_tokens or month_tokens or day_micros or month_micros then
    account.budget = 'forebay:budget:' .. account.name
    local found = redis.call('HMGET', account.budget, 'day', 'day_tokens', 'day_micros',
                             'month', 'month_tokens', 'month_micros', 'since', 'restored')
    local month = month_of(today)
    local same_day, same_month = tonumber(found[1] or -1) == today, tonumber(found[4] or -1) == month
    account.day, account.month = today, month
    account.since = not found[8] and tonumber(found[7] or now) or 0
    account.day_tokens = same_day and tonumber(found[2]) or 0
    account.day_micros = same_day and tonumber(found[3]) or 0
    account.month_tokens = same_month and tonumber(found[5]) or 0
    account.month_micros = same_month and tonumber(found[6]) or 0
    local function within(limit, used, wanted, code, ms)
      if limit and used + wanted > limit and wanted > 0 then
        refuse(code, wanted > limit and math.huge or ms())
      end
    end
    local function to_tomorrow()
      return (today + 1) * DAY - now
    end
    account.limits = {day_tokens, month_tokens, day_micros, month_micros}
    within(day_tokens, account.day_tokens, tokens, number + 4, to_tomorrow)
    within(month_tokens, account.month_tokens, tokens, number + 5, ms_to_next_month)
    within(day_micros, account.day_micros, micros, number + 6, to_tomorrow)
    within(month_micros, account.month_micros, micros, number + 7, ms_to_next_month)
  end
  return account
end

local function take(account)
  if account.window then
    account.requests, account.used = account.requests + 1, account.used + account.taken
    redis.call('HSET', account.window, 'ends', account.ends, 'requests', account.requests, 'tokens', account.used)
    if account.born then
      redis.call('PEXPIREAT', account.window, account.ends)
    end
  end
  if account.running then
    redis.call('ZADD', account.running, deadline, id)
  end
  if account.budget then
    redis.call('HSET', account.budget, 'day', account.day, 'day_tokens', account.day_tokens + tokens,
               'day_micros', account.day_micros + micros, 'month', account.month,
               'month_tokens', account.month_tokens + tokens, 'month_micros', account.month_micros + micros)
    if account.since == now then
      redis.call('HSET', account.budget, 'since', now)
    end
  end
end

local function show(account)
  local left = account.per_minute and math.max(0, account.per_minute - account.requests)
  if left and left < requests_left then
    requests_limit, requests_left, requests_reset = account.per_minute, left, account.ends - now
  end
  left = account.per_minute_tokens and math.max(0, account.per_minute_tokens - account.used)
  if left and left < tokens_left then
    tokens_limit, tokens_left, tokens_reset = account.per_minute_tokens, left, account.ends - now
  end
end

-- How much of the account's budgets is used, in thousandths, of the day's and of the month's; -1 is no budget.
local function budget_used(account)
  local function part(used, limit)
    return limit and math.floor(1000 * used / math.max(1, limit)) or -1
  end
  local limits = account.limits
  if not limits then
    return -1, -1
  end
  return math.max(part(account.day_tokens, limits[1]), part(account.day_micros, limits[3])),
         math.max(part(account.month_tokens, limits[2]), part(account.month_micros, limits[4]))
end

local function receipt_of(account)
  return table.concat({account.name, account.ends, account.taken, account.day, account.month, account.slot}, ' ')
end

-- What the answer would have cost, to the nearest micro-unit, as services/gateway/prices.py has it.
local function spared()
  local old = math.min(prompt_cached, prompt)
  local dear = (prompt - old) * ARGV[27] + old * ARGV[28] + completion * ARGV[29]
  return string.format('%d', math.floor((dear + 500000) / 1000000))
end

local subject, tenant = look(10, 10), look(18, 20)
local receipt, settled = '', 0
if refused == 0 and cached and ARGV[26] ~= '' then
  take(subject)
  take(tenant)
  redis.call('XADD', 'forebay:ledger', '*', 'entry', ARGV[26] .. ',"saved_micros":' .. spared() .. '}')
  settled = 1
elseif ARGV[30] == '1' then
  return false
elseif refused == 0 then
  take(subject)
  take(tenant)
  receipt = tokens_text .. ' ' .. micros_text .. ' ' .. receipt_of(subject) .. ' ' .. receipt_of(tenant)
  redis.call('HSET', 'forebay:leases:' .. ARGV[2], id, ARGV[9] .. '\n' .. receipt)
  if ARGV[7] ~= '' and not cached and not leader then
    redis.call('SET', ARGV[7], ARGV[8], 'PX', math.max(1, deadline - now))
  end
else
  cached, leader = false, false
end
show(subject)
show(tenant)
if requests_limit < 0 then requests_left = -1 end
if tokens_limit < 0 then tokens_left = -1 end

local day_used, month_used = budget_used(tenant)
return {refused, wait == math.huge and -1 or wait, cached, leader, receipt,
        requests_limit, requests_left, requests_reset, tokens_limit, tokens_left, tokens_reset,
        day_used, month_used, refused == 0 and subject.since or 0, refused == 0 and tenant.since or 0, settled}
