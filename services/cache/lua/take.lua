-- Makes a process the writer of a tape that nobody writes any more, unless somebody has written since.
--
-- KEYS[1]  the tape
-- ARGV     id of the last entry that the taker has read ("" for none), ms that the tape is kept, entries it may have,
--          then the fields of the entry that says who writes from here on
-- returns  that entry's id; false when there are entries after the one that the taker has read

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if (last[1] and last[1][1] or '') ~= ARGV[1] then
  return false
end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return id
