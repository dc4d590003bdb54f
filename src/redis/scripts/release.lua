-- Ends a lease without a value.
--
-- KEYS  1 control record
-- ARGV  1 owner, 2 token, or "" for whatever this owner holds, 3 kind of failure, or "" for none,
--       4 ms for which the failure is told to whoever asks, 5 channel, 6 lifetime of the control record in ms,
--       7 the rest of the event
-- Returns 1, or 0 if the lease was not held.
local control = KEYS[1]
local c = redis.call('HMGET', control, 't', 'o', 'w')
if not c[1] or c[2] ~= ARGV[1] or (ARGV[2] ~= '' and c[1] ~= ARGV[2]) then return 0 end
redis.call('HDEL', control, 'o', 'x', 'w')
if ARGV[3] ~= '' then
  local time = redis.call('TIME')
  local ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', control, 'e', c[1], 'm', ARGV[3], 'u', string.format('%.0f', ms + tonumber(ARGV[4])))
end
redis.call('PEXPIRE', control, ARGV[6])
if c[3] then
  redis.call('PUBLISH', ARGV[5], 'a' .. string.char(#c[1]) .. c[1] .. ARGV[7])
end
return 1
