-- Prolongs a lease.
--
-- KEYS  1 control record
-- ARGV  1 owner, 2 token, 3 lease in ms, 4 lifetime of the control record in ms
-- Returns 1, or 0 if the lease is not held any more.
local control = KEYS[1]
local c = redis.call('HMGET', control, 't', 'o')
if c[1] ~= ARGV[2] or c[2] ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', control, 'x', string.format('%.0f', ms + tonumber(ARGV[3])))
redis.call('PEXPIRE', control, ARGV[4])
return 1
